"""Gates of stock transformers: blocks that are not computed, with and without a KV context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lazydiff.evaluation.laboratory import GATES

from .in_process import Pack
from .test_kv_promises import check_hole_alone
from .test_mask_nodes import Graph as MaskGraph
from .tiny_models import TINY, Edit, prompt, tiny

pytestmark = pytest.mark.host

STEPS = 6
CLOSE = 1e-5  # sums in another order


class Gated(Edit):
    """An edit, its MODEL gated, what the user is shown, and the network's blocks."""

    def __init__(self, pack: Pack, name: str, ratio: float = 0.3):
        super().__init__(pack, name)
        self.lines: list[str] = []
        self.gates = pack.part("nodes.host.stock_gates").StockGates(ratio, self.lines.append)
        self.gated = self.gates.attach(self.model)
        network = self.model.model.diffusion_model
        shape = pack.part("nodes.host.architectures").architecture(self.model)
        self.places = [f"{s.blocks}.{i}" for s in shape.stages for i in range(len(getattr(network, s.blocks)))]
        self.blocks = [network.get_submodule(place) for place in self.places]

    @property
    def table(self) -> list[list[bool]]:
        (skips,) = self.gates.calibrated.values()
        return skips.table

    @contextmanager
    def computed(self) -> Iterator[list[int]]:
        """The blocks that are computed, in their order."""
        seen: list[int] = []
        first = [next(m for m in block.modules() if "Linear" in type(m).__name__) for block in self.blocks]
        handles = [m.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, m in enumerate(first)]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


class ByHand:
    """The same on a stock model, spelled out: every block is computed, and the answer of a skipped one thrown away.

    Which input an output continues is seen by its shape.
    """

    def __init__(self, edit: Gated, table: list[list[bool]]):
        self.table, self.step = table, -1
        self.kept: dict[int, list[Tensor | None]] = {}
        self.change = torch.full((len(table), len(edit.blocks)), torch.inf)
        self.model = edit.model.clone()
        for i, place in enumerate(edit.places):
            path = f"diffusion_model.{place}.forward"
            self.model.add_object_patch(path, partial(self.block, i, self.model.get_model_object(path)))

    def block(self, number: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.step += number == 0
        before = [x.clone() for x in (*args, *kwargs.values()) if torch.is_tensor(x) and x.ndim >= 3]
        answer = forward(*args, **kwargs)
        parts = answer if isinstance(answer, tuple) else (answer,)
        inputs = [None if part is None else next(x for x in before if x.shape == part.shape) for part in parts]
        if self.table[self.step][number]:
            kept = zip(inputs, self.kept[number], strict=True)
            parts = tuple(None if old is None else old + change for old, change in kept)
            return parts if isinstance(answer, tuple) else parts[0]
        fresh = [None if old is None else part - old for part, old in zip(parts, inputs, strict=True)]
        pairs = [pair for pair in zip(fresh, self.kept.get(number, ()), strict=False) if pair[0] is not None]
        if pairs and all(new.shape == old.shape for new, old in pairs):
            cosines = [F.cosine_similarity(new, old, dim=-1).flatten() for new, old in pairs]
            self.change[self.step, number] = 1 - torch.cat(cosines).mean()
        self.kept[number] = fresh
        return answer


@pytest.mark.parametrize("name", list(TINY))
def test_samplings_equal_those_by_hand(pack: Pack, name: str) -> None:
    edit = Gated(pack, name)
    blocks, how = len(edit.blocks), {"steps": STEPS, "cfg": 1.0}
    stock = edit.sample(**how)
    with edit.computed() as seen:
        assert torch.equal(edit.sample(edit.gated, **how), stock)
        assert len(seen) == STEPS * blocks and "computed everything" in edit.lines[-1]
        seen.clear()
        skipped = edit.sample(edit.gated, **how)
    count = round(0.3 * STEPS * blocks)
    assert len(seen) == STEPS * blocks - count
    assert edit.lines[-1] == f"Lazy Gates: {count / STEPS / blocks:.0%} of the blocks were not computed."
    assert not any(map(any, edit.table[::2])) and not torch.equal(skipped, stock)
    assert torch.equal(edit.sample(**how), stock)  # unpatched

    dense = ByHand(edit, [[False] * blocks] * STEPS)
    assert torch.equal(edit.sample(dense.model, **how), stock)
    order = dense.change[1::2].mean(1).argsort()
    odd, chosen = dense.change[1::2][order], torch.tensor(edit.table)[1::2][order]  # the least change first
    assert chosen.sum(1).tolist() == [min(max(count - i * blocks, 0), blocks) for i in range(len(odd))]
    assert all(row[some].max() <= row[~some].min() + CLOSE for row, some in zip(odd, chosen, strict=True)
               if 0 < some.sum() < blocks)  # fmt: skip
    expected = edit.sample(ByHand(edit, edit.table).model, **how)
    assert (skipped - expected).abs().max() <= CLOSE * expected.abs().max()


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart-sigma"])
def test_a_ratio_of_zero_changes_nothing(pack: Pack, name: str) -> None:
    edit = Gated(pack, name, ratio=0.0)
    stock = edit.sample()
    assert all(torch.equal(edit.sample(edit.gated), stock) for _ in range(2))
    assert edit.lines[-1] == "Lazy Gates: 0% of the blocks were not computed."


def test_prompts_keep_their_own(pack: Pack) -> None:
    """Prompts of one length go through the model together, those of two apart: the same but for the length."""
    edit = Gated(pack, "flux")
    edit.negative = prompt("flux", 9, 2)
    for _ in range(2):
        together = edit.sample(edit.gated, steps=STEPS)
    parts = []

    def one_by_one(function: Any, given: dict[str, Any]) -> Tensor:
        """In place of the call with both: one for each."""
        c, options = given["c"], given["c"]["transformer_options"]
        out = []
        for i, role in enumerate(given["cond_or_uncond"]):
            own = {**options, "cond_or_uncond": [role], "uuids": [options["uuids"][i]], "sigmas": options["sigmas"][:1]}
            one = {k: v[i : i + 1] if torch.is_tensor(v) and len(v) == 2 else v for k, v in c.items()}
            one["transformer_options"] = own
            out.append(function(given["input"][i : i + 1], given["timestep"][i : i + 1], **one))
        parts.append(len(out))
        return torch.cat(out)

    apart = edit.gated.clone()
    apart.set_model_unet_function_wrapper(one_by_one)
    found = edit.sample(apart, steps=STEPS)
    assert parts == [2] * STEPS and "29% of the blocks" in edit.lines[-1]
    assert (found - together).abs().max() <= 1e-4 * together.abs().max()  # sums in another order, over the steps


# Together with a KV context


@pytest.mark.parametrize("gates_first", [True, False])
@pytest.mark.parametrize("name", ["flux", "sd3", "pixart-sigma", "qwen-image", "hunyuan-dit"])
def test_a_kv_context_keeps_in_step(pack: Pack, name: str, gates_first: bool) -> None:
    """8 steps, 2 of them anchors: every attention that is computed between sees the keys of its own block."""
    edit = Gated(pack, name, ratio=0.25)
    how, context = {"steps": 8, "cfg": 1.0}, edit.context(anchors=2)
    lazy = edit.attach(context, edit.gated) if gates_first else edit.gates.attach(edit.attach(context))
    kv = edit.sample(edit.attach(edit.context(anchors=2)), **how)
    assert torch.equal(edit.sample(lazy, **how), kv)
    table, blocks = edit.table, len(edit.blocks)
    # Neither at anchors nor at the steps after them, so that this ratio takes all of two steps; the first block alone
    # would leave the others with the keys of those before them.
    assert [sum(row) for row in table] == [0, 0, 0, blocks, 0, 0, 0, blocks]
    for row in table:
        row[1:] = [False] * (blocks - 1)

    fresh = edit.attach(edit.context(anchors=2), edit.gated)
    with edit.computed() as seen:
        out, counts = edit.counted(fresh, **how)
    assert len(seen) == 8 * blocks - 2 and f"{0.25 / blocks:.0%} of the blocks" in edit.lines[-1]
    few = min(counts)
    assert [count == few for count in counts] == [False, True, True, True] * 2
    check_hole_alone(edit, out)
    expected = edit.sample(edit.attach(edit.context(anchors=2), ByHand(edit, table).model), **how)
    assert (out - expected)[edit.hole].abs().max() <= CLOSE * expected.abs().max()


def test_anchors_that_are_there_already(pack: Pack) -> None:
    """Samplings after the first read at every step; those of an automatic context place their anchors as they go."""
    edit = Gated(pack, "flux", ratio=0.4)
    lazy = edit.attach(edit.context(anchors=2, reuse=True), edit.gated)
    for seed in range(3):
        check_hole_alone(edit, edit.sample(lazy, steps=STEPS, seed=seed))
    assert "of the blocks were not computed" in edit.lines[-1] and ": 0%" not in edit.lines[-1]
    for _ in range(2):
        check_hole_alone(edit, edit.sample(edit.attach(edit.context(), edit.gated), steps=STEPS))


@pytest.mark.parametrize("name", ["flux", "pixart-sigma"])
def test_a_mask_node_in_the_same_graph(pack: Pack, name: str) -> None:
    """Instant Mask looks into the attentions of the very sampling that is gated and has a KV context."""
    graph = MaskGraph(pack, name)
    hole = torch.zeros(1, 256, 320)
    hole[:, 75:150, 130:210] = 1
    context, canvas = pack.call("LazyContextEncode", graph.model, graph.vae, graph.image, hole, 0, 0, anchors=2)
    lines: list[str] = []
    gated = pack.part("nodes.host.stock_gates").StockGates(0.4, lines.append).attach(graph.model)
    (model,) = pack.call("LazyContextApply", gated, context)
    model, positive = graph.instant(model=model)
    for _ in range(2):
        result = graph.sample(model, canvas, denoise=1.0, positive=positive)
        shown = (canvas["noise_mask"] == 0).expand_as(result)
        assert torch.isfinite(result).all() and torch.equal(result[shown], canvas["samples"][shown])
    assert "were not computed" in lines[-1]


def test_nodes_in_one_graph(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazy Gates, Lazy Context Encode and Lazy Sample: the visible region is bit-identical."""
    edit, lines = Edit(pack, "flux"), []
    monkeypatch.setattr(pack.part("nodes.host.stock_gates"), "show", lines.append)
    model, context = pack.call("LazyGates", edit.model, "calibrate", 0.4, 0.5)[0], edit.context(anchors=2)
    for _ in range(2):
        args = context, edit.positive, edit.negative, 1, STEPS, 3.0, "euler", "simple", 1.0, 2
        (out,) = pack.call("LazySample", model, *args)
        check_hole_alone(edit, out["samples"])
    assert "calibrated" in lines[0] and "of the blocks were not computed" in lines[1]


# What ends early, and what does not fit


@pytest.mark.parametrize("context", [True, False])
def test_an_interrupted_sampling_leaves_nothing(pack: Pack, context: bool) -> None:
    import comfy.model_management as mm

    edit = Gated(pack, "flux")
    stock = edit.sample(steps=STEPS)

    def model() -> Any:
        return edit.attach(edit.context(anchors=2), edit.gated) if context else edit.gated

    def stop(step: int, *rest: Any) -> None:
        assert edit.gates.run is not None
        if step == 3:
            raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        edit.sample(model(), steps=STEPS, callback=stop)
    assert edit.gates.run is None and not edit.lines and not edit.gates.calibrated
    for _ in range(2):
        expected = edit.sample(model(), steps=STEPS)
    with pytest.raises(mm.InterruptProcessingException):
        edit.sample(model(), steps=STEPS, callback=stop)
    assert edit.gates.run is edit.gates.call is None and len(edit.lines) == 2
    assert torch.equal(edit.sample(model(), steps=STEPS), expected)
    assert torch.equal(edit.sample(steps=STEPS), stock)


def test_gates_once_more_take_the_place_of_the_first(pack: Pack) -> None:
    edit, lines = Gated(pack, "flux"), []
    second = pack.part("nodes.host.stock_gates").StockGates(0.3, lines.append).attach(edit.gated)
    for model in (edit.gated, edit.gated, second, second):
        edit.sample(model, steps=STEPS)
    assert len(edit.lines) == len(lines) == 2 and edit.lines == lines


def test_an_odd_number_of_steps_skips_less_than_asked_for(pack: Pack) -> None:
    edit = Gated(pack, "flux", ratio=0.5)
    for _ in range(2):
        edit.sample(edit.gated, steps=3, cfg=1.0)
    assert "skip 33%" in edit.lines[0] and edit.lines[1].startswith("Lazy Gates: 33% of the blocks")


def test_what_replaces_blocks_is_left_alone(pack: Pack) -> None:
    edit = Gated(pack, "flux")
    for model in (edit.model, edit.gated):
        model.set_model_patch_replace(lambda args, more: more["original_block"](args), "dit", "double_block", 0)
    stock = edit.sample(steps=STEPS)
    assert all(torch.equal(edit.sample(edit.gated, steps=STEPS), stock) for _ in range(2)) and not edit.lines


def test_others_are_refused_in_words(pack: Pack) -> None:
    with pytest.raises(ValueError, match="this MODEL is a SD15: gates are for LazyDiffusion models and for"):
        pack.call("LazyGates", tiny("sd15"), "calibrate", 0.4, 0.5)
    with pytest.raises(ValueError, match="this MODEL is a Flux, and .* is for a LazyDiffusion model: choose “calib"):
        pack.call("LazyGates", tiny("flux"), GATES.name, 0.4, 0.5)
    edit = Gated(pack, "flux")
    with pytest.raises(ValueError, match="asks the model between its steps"):
        edit.sample(edit.gated, sampler="dpmpp_2s_ancestral")
