"""What was measured, as the documents are to tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
WEIGHTS, BASELINES = ROOT / "lazydiff" / "weights", ROOT / "lazydiff" / "evaluation" / "weights"


def measured(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf-8"))


KV, FIGURE5 = measured("docs/kv-context.json"), measured("docs/figure5.json")
STEP, GATES, GATES_HOST = (measured(f"docs/{name}.json") for name in ("step", "gates", "gates-host"))
MASKS, PUBLISHED, MANY = (measured(f"docs/{name}.json") for name in ("masks", "published-masks", "many-masks"))
LAZY_VAE, POISSON, CHAIN, LAUNCHES = (
    measured(f"docs/{name}.json") for name in ("lazy-vae", "poisson", "chain", "launches")
)
DATA, PHOTOGRAPHS = measured("docs/data.json"), measured("docs/photographs.json")
ZOOM, CANVAS, UNET = (measured(f"docs/{name}.json") for name in ("zoom", "canvas", "unet"))
SHIPPED_TIMES = measured("docs/shipped.json")
UNET_QUALITY = measured("docs/unet-quality.json")
EVIDENCE, HELD_OUT = measured("docs/evidence.json"), measured("docs/held-out.json")
MODEL = measured("lazydiff/weights/evaluation.json")
SMALL, COMPARED = (
    measured(f"lazydiff/evaluation/weights/{name}.json") for name in ("lazydiffusion-small", "baselines")
)


def figure5(canvas: int, percent: int) -> dict[str, Any]:
    return next(one for one in FIGURE5["table"] if (one["canvas"], one["percent"]) == (canvas, percent))
