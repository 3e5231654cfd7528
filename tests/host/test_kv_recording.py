"""Recordings without the hole: what they keep, that they serve every seed, and when there are none."""

from __future__ import annotations

import pytest
import torch

from .in_process import Pack
from .tiny_models import TINY, Edit

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.fixture(params=TINY)
def edit(request: pytest.FixtureRequest, pack: Pack) -> Edit:
    return Edit(pack, request.param)


def test_no_step_is_dense(edit: Edit) -> None:
    context = edit.context()
    lazy = edit.attach(context)
    out, counts = edit.counted(lazy)
    print(edit.name, counts, context.hole.total, edit.cache(context).count)
    assert torch.equal(out[~edit.hole], edit.canvas[~edit.hole])
