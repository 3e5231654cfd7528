"""The laboratory: models of the small world, 96 px, on which caches, masks and gates are measured at little cost.

None of them is offered to users.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
SMALL = WEIGHTS / "lazydiffusion-small.safetensors"
GATES = WEIGHTS / "lazydiffusion-small.gates.safetensors"  # for 10 of its steps
