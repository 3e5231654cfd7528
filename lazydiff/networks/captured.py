"""Steps of few shapes: token counts rounded up to a bucket, and each shape recorded once as a CUDA graph.

A small hole leaves a GPU waiting for the host, which launches hundreds of short kernels in every step. A graph is
launched once. It always reads the same memory: what a step is given is copied there first, and what stays the same from
step to step only when it is another object than the step before was given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..tokens import HoleTokens
from .decoder import LazyDecoder, TextKeys

BUCKET = 64  # tokens; also what attention kernels like to count in


class CapturedDecoder:
    """A decoder in the place of which this may be called, for samplings: nothing is differentiated.

    On CUDA its calls are replayed from graphs, one for each number of rows and bucket of tokens; elsewhere they are
    computed as ever, with the same rounding up. Graphs keep the memory of their largest call until this is dropped.
    """

    def __init__(self, decoder: LazyDecoder, bucket: int = BUCKET):
        self.decoder, self.bucket = decoder, bucket
        self.steps: dict[tuple[object, ...], Step] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, text: TextKeys, hole: HoleTokens, context: Tensor) -> Tensor:
        """As `LazyDecoder.forward`; [B, n, outputs·p·p]"""
        size = -(-hole.count // self.bucket) * self.bucket
        if not size:
            return self.decoder(x, t, text, hole, context)
        keys, weights = text.blocks[0][0], self.decoder.ctx_fuse.weight.data_ptr()  # a graph reads them where they were
        shape = (len(x), len(t), size, hole.grid, keys.shape, text.mask is None, x.dtype, x.device, weights)
        if shape not in self.steps:
            self.steps[shape] = Step(self.decoder, size, x, t, text, hole, context)
        return self.steps[shape](x, t, text, hole, context)


class Step:
    """One shape of call: its memory and how it is run."""

    @torch.inference_mode(False)  # tensors made in inference mode could not be written to outside of it
    def __init__(
        self, decoder: LazyDecoder, size: int, x: Tensor, t: Tensor, text: TextKeys, hole: HoleTokens, context: Tensor
    ):
        self.decoder = decoder
        self.x, self.context = (each.new_zeros(len(each), size, each.shape[-1]) for each in (x, context))
        index = hole.index.new_zeros(len(x), size)
        # Which tokens there are differs from one hole to the next, so that the decoder may not know their number.
        self.hole = HoleTokens(index, index > 0, hole.grid, counts=None)
        blocks = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in text.blocks]
        self.text = TextKeys(blocks, None if text.mask is None else torch.zeros_like(text.mask))
        self.t = torch.zeros_like(t)
        self.given: tuple[object, ...] = ()
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, text: TextKeys, hole: HoleTokens, context: Tensor) -> Tensor:
        if not (self.given and all(old is new for old, new in zip(self.given, (text, hole, context), strict=True))):
            self.remember(text, hole, context)
        self.x[:, : hole.count].copy_(x)
        self.t.copy_(t)
        if self.replay is None:
            self.replay = capture(self.run) if x.is_cuda else self.run
        return self.replay()[:, : hole.count].clone()  # the next step overwrites it

    def remember(self, text: TextKeys, hole: HoleTokens, context: Tensor) -> None:
        """Copy what is the same in all steps of a sampling."""
        n = hole.count
        self.hole.index[:, :n].copy_(hole.index)
        self.hole.valid.zero_()[:, :n].copy_(hole.valid)
        self.context[:, :n].copy_(context)
        for mine, theirs in zip(self.text.blocks, text.blocks, strict=True):
            for kept, given in zip(mine, theirs, strict=True):
                kept.copy_(given)
        if self.text.mask is not None and text.mask is not None:
            self.text.mask.copy_(text.mask)
        self.given = text, hole, context

    def run(self) -> Tensor:
        return self.decoder(self.x, self.t, self.text, self.hole, self.context)


def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same, replayed from a CUDA graph. What cannot be recorded is run as it is, and a line of the log says so."""
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    try:
        # Outside of the graph first, as torch asks for: libraries set themselves up in their first calls.
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            out = run()
    except RuntimeError as error:
        logging.warning("Lazy Diffusion: steps are not captured, because torch says: %s", error)
        return run

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
