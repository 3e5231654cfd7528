"""The pack as ComfyUI loads it: the repository's folder, under a name of the host's making."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.host

PACK = Path(__file__).parents[2]


def test_pack_loads_and_leaves_other_nodes_alone(host: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    before = dict(host.NODE_CLASS_MAPPINGS)
    with caplog.at_level("INFO"):
        assert asyncio.run(host.load_custom_node(str(PACK))), caplog.text  # the host logs errors instead of raising
    assert host.NODE_CLASS_MAPPINGS == before, "this version has no nodes"
    assert "no nodes yet" in caplog.text
