"""Kernel launches and waits of a step, an edit and a VAE's decode, counted on a pretended GPU.

    python benchmarks/launches.py --output DIR

Prints a table and writes `launches.json`. A launch costs the host 5 to 10 µs whatever is computed, so that a GPU that is
asked in many small pieces waits for them; and it waits each time the host wants to know a number. Counts do not depend
on sizes of layers: widths are small here, numbers of tokens and of blocks are the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pretended_gpu import pretended_gpu  # noqa: E402
from lazydiff.core.tokens import HoleTokens  # noqa: E402
from lazydiff.model.config import PIXART_1024  # noqa: E402
from lazydiff.model.decoder import LazyDecoder  # noqa: E402

TOKENS = 410  # 10 % of the canvas
BLOCKS = PIXART_1024.decoder_depth
NARROW = {"width": 144, "heads": 2, "text_width": 64}  # with PixArt's 72 numbers per head


@torch.no_grad()
def decoder_call(depth: int, counts: tuple[int, ...] = (TOKENS, TOKENS)) -> Callable[[], Any]:
    """One call of PixArt's decoder for a guided pair in half precision, whose prompts are padded."""
    config = replace(PIXART_1024, decoder_depth=depth, **NARROW)
    decoder = LazyDecoder(config, dtype=torch.float16).to("cuda").eval()
    text = torch.randn(len(counts), config.text_length, config.text_width, dtype=torch.float16).to("cuda")
    keys = decoder.text_keys(text, torch.ones(len(counts), config.text_length, dtype=torch.bool).to("cuda"))
    mask = torch.stack([(torch.arange(config.grid**2) < n).view(config.grid, config.grid) for n in counts])
    hole = HoleTokens.from_grid_mask(mask).to("cuda")
    rows = len(counts), max(counts)
    x = torch.randn(*rows, config.channels * config.patch**2, dtype=torch.float16).to("cuda")
    context = torch.randn(*rows, config.width, dtype=torch.float16).to("cuda")
    t = torch.full((1,), 500).to("cuda")
    return lambda: decoder(x, t, keys, hole, context)


with pretended_gpu() as gpu, torch.no_grad():
    for counts in ((TOKENS, TOKENS), (TOKENS, TOKENS - 40)):
        a, b = decoder_call(1, counts), decoder_call(3, counts)
        a(), b()
        x, y = gpu.count(a), gpu.count(b)
        per = (y.total() - x.total()) / 2
        print(per, x.total() - per, gpu.waits, gpu.copies)
        print({k: (y[k] - x[k]) / 2 for k in y})
        print({k: x[k] - (y[k] - x[k]) / 2 for k in y})
