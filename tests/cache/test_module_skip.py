"""Gates: what stands in for a module, when, and that nothing else changes; against modules called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import scene
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lazydiff.cache import module_skip as module
from lazydiff.cache.module_skip import (
    TOKENS,
    Gates,
    SkipCalibrator,
    SkipPolicy,
    SkipSession,
    SkipTable,
    load_gates,
    score,
)
from lazydiff.model.config import Sampling
from lazydiff.model.context import LazyContext
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import SampleSettings, sample
from lazydiff.sampling.samplers import make_sampler
from lazydiff.sampling.schedules import from_strength

PROMPTS, SEEDS, STEPS = ["a red tree", "another one"], [3, 4], 6
MODULES = 4  # of the tiny decoder's two blocks
SAMPLER = {"flow": "euler", "iddpm": "iddpm"}
# Rows that are computed in another batch: sums in another order, over some steps.
CLOSE = 1e-4


def sampling_of(model: LazyDiffusion, guidance: float = 1.0) -> Sampling:
    name = SAMPLER[model.config.prediction]
    return replace(model.config.sampling, sampler=name, steps=STEPS, guidance=guidance)


def levels_of(model: LazyDiffusion) -> list[float]:
    return make_sampler(sampling_of(model))[1]


def gates_of(model: LazyDiffusion, scale: float, seed: int = 0) -> Gates:
    """Gates at every second step with random weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = scale * torch.randn(STEPS, MODULES, model.config.network.width, generator=generator)
    weights[::2] = 0
    scores = torch.rand(STEPS, MODULES, generator=generator)
    return Gates(levels_of(model), model.fingerprint, weights, scores, {})


def all_skips(model: LazyDiffusion) -> SkipTable:
    table = torch.zeros(STEPS, MODULES, dtype=torch.bool)
    table[1::2] = True
    return SkipTable(levels_of(model), table)


def canvases(model: LazyDiffusion) -> LazyContext:
    """Two canvases whose holes differ in size; padded, as gates need them, so that other sums are not compared."""
    (image, mask, _), (other, smaller, _) = scene(1), scene(2)
    context = encode(model, torch.cat((image, other)), torch.cat((mask, smaller)))
    return context._replace(hole=context.hole.keep_padding())


def sampled(
    model: LazyDiffusion, gates: SkipPolicy | None, guidance: float = 1.0, callback: Any = None, **options: Any
) -> Tensor:
    settings = SampleSettings(sampling_of(model, guidance), skip=gates, **options, callback=callback)
    return sample(model, canvases(model), PROMPTS, SEEDS, settings)


@contextmanager
def counted(model: LazyDiffusion) -> Iterator[list[int]]:
    """Rows that went through each attention and MLP of the decoder's blocks."""
    rows: list[int] = []
    modules = [part for block in model.decoder.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(lambda m, args, out: rows.append(len(out))) for part in modules]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


# What is computed


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_gates_without_weights_change_nothing(model: LazyDiffusion, guidance: float) -> None:
    gates = gates_of(model, 0.0)
    assert torch.equal(sampled(model, gates, guidance), sampled(model, None, guidance)) and gates.ratio == 0
    # Raised thresholds skip more where a gate was trained, and never where none was.
    gates.threshold = 0.9
    assert torch.equal(sampled(model, gates, guidance), sampled(model, None, guidance)) and gates.ratio == 0


@pytest.mark.parametrize("gates", [SkipPolicy, lambda levels: SkipCalibrator(levels, MODULES)])
def test_computing_everything_changes_nothing(model: LazyDiffusion, gates: Callable[[Any], SkipPolicy]) -> None:
    assert torch.equal(sampled(model, gates(levels_of(model)), 2.0), sampled(model, None, 2.0))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_rows_decide_for_themselves(model: LazyDiffusion, guidance: float) -> None:
    """A batch of canvases, padded, conditional and unconditional together: as each canvas alone."""
    gates = gates_of(model, 0.05)
    together = sampled(model, gates, guidance)
    assert 0.05 < gates.ratio < 0.45
    for row in range(2):
        image, mask, _ = scene(row + 1)
        context = encode(model, image, mask)
        settings = SampleSettings(sampling_of(model, guidance), skip=gates_of(model, 0.05))
        alone = sample(model, context, PROMPTS[row : row + 1], SEEDS[row : row + 1], settings)
        assert torch.allclose(together[row : row + 1, : context.hole.count], alone, atol=CLOSE)


def test_disagreement_in_a_batch_is_the_loop_over_its_rows(model: LazyDiffusion) -> None:
    """The decoder itself, on four rows of random tokens: one run for all of them, or one for each."""
    gates, context = gates_of(model, 0.05), encode(model, *scene(1)[:2])
    rows, decoder = 4, model.decoder
    hole, tokens = context.hole.tile(rows), context.tokens.repeat(rows, 1, 1)
    text = model.prompt([*PROMPTS, "", "a house"])
    levels, disagreed = levels_of(model), 0

    def one(values: Any, row: int) -> Any:
        return values[row : row + 1]

    together, *alone = (gates.session(model.fingerprint, levels) for _ in range(1 + rows))
    for level in levels[:-1]:
        x, t = torch.randn(rows, hole.count, context.canvas.shape[-1]), torch.full((rows,), 1000 * level)
        before = gates.skipped
        answer = decoder(x, t, text, hole, tokens, gate=together.call(level, "all"))
        disagreed += (gates.skipped - before) % rows > 0
        for row, run in enumerate(alone):
            words = replace_rows(text, row)
            single = replace(hole, index=one(hole.index, row), valid=one(hole.valid, row))
            gate = run.call(level, "one")
            expected = decoder(one(x, row), one(t, row), words, single, one(tokens, row), gate=gate)
            assert torch.allclose(one(answer, row), expected, atol=CLOSE)
    assert disagreed


def replace_rows(text: Any, row: int) -> Any:
    blocks = [(k[row : row + 1], v[row : row + 1]) for k, v in text.blocks]
    return text._replace(blocks=blocks, mask=None if text.mask is None else text.mask[row : row + 1])


def test_what_stands_in_is_the_output_of_the_step_before(model: LazyDiffusion) -> None:
    """Against a decoder whose modules are replaced by hand by what they said a step earlier."""
    context, text = encode(model, *scene(1)[:2]), model.prompt(PROMPTS[:1])
    run, levels = all_skips(model).session("", levels_of(model)), levels_of(model)
    said: list[Tensor] = []

    def remember(part: Callable[..., Tensor], prepare: Callable[[], Tensor], *others: Any) -> Tensor:
        said.append(part(prepare(), *others))
        return said[-1]

    for first in range(0, STEPS, 2):
        x, later = torch.randn(2, 1, context.hole.count, context.canvas.shape[-1])
        said.clear()

        def answer(z: Tensor, step: int, gate: Any) -> Tensor:
            t = torch.full((1,), 1000 * levels[step])
            return model.decoder(z, t, text, context.hole, context.tokens, gate=gate)

        assert torch.equal(answer(x, first, run.call(levels[first], "a")), answer(x, first, remember))
        expected = answer(later, first + 1, lambda *unused: said.pop(0))
        assert torch.equal(answer(later, first + 1, run.call(levels[first + 1], "a")), expected)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["gates", "fixed", "all"])
def test_the_ratio_is_that_of_the_counted_calls(model: LazyDiffusion, kind: str, guidance: float) -> None:
    gates: SkipPolicy = gates_of(model, 0.05) if kind != "all" else all_skips(model)
    if kind == "fixed":
        gates = gates_of(model, 0.05).fixed(0.25)
    with counted(model) as rows:
        sampled(model, gates, guidance)
    assert gates.asked == STEPS * MODULES * 2 * guidance and gates.asked - gates.skipped == sum(rows)
    assert {"gates": 0.05 < gates.ratio < 0.45, "fixed": gates.ratio == 0.25, "all": gates.ratio == 0.5}[kind]
    gates.reset()
    assert gates.ratio == 0


def test_decisions_made_beforehand_read_nothing_back(model: LazyDiffusion) -> None:
    """A number that comes from the device makes the host wait for it."""

    class Spy(TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    context, text, levels = encode(model, *scene(1)[:2]), model.prompt(PROMPTS[:1]), levels_of(model)
    waits = {}
    for name, gates in {"fixed": all_skips(model), "gates": gates_of(model, 0.05)}.items():
        run, Spy.seen = gates.session(model.fingerprint, levels), []
        for level in levels[:-1]:
            x, t = torch.randn(1, context.hole.count, context.canvas.shape[-1]), torch.full((1,), 1000 * level)
            with Spy():
                model.decoder(x, t, text, context.hole, context.tokens, gate=run.call(level, "a"))
        waits[name] = sum(name.startswith(("_local_scalar_dense", "nonzero", "item")) for name in Spy.seen)
        assert len(Spy.seen) > 100
    assert waits["fixed"] == 0


# What is kept


@pytest.mark.parametrize("kind", [all_skips, lambda model: gates_of(model, 0.05)])
def test_nothing_is_left_for_the_next_sampling(model: LazyDiffusion, kind: Any, monkeypatch: Any) -> None:
    """Neither by a sampling that ended nor by one that was stopped."""
    runs: list[SkipSession] = []
    monkeypatch.setattr(module, "SkipSession", lambda *args: runs.append(SkipSession(*args)) or runs[-1])
    gates = kind(model)
    first = sampled(model, gates)

    def stop(done: int, total: int, x0: Tensor) -> None:
        assert runs[-1].kept
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampled(model, gates, callback=stop)
    assert torch.equal(sampled(model, gates), first)
    assert len(runs) == 3 and not any(run.kept for run in runs)


def test_prompts_that_do_not_share_a_call_do_not_share_what_is_kept(model: LazyDiffusion) -> None:
    run, ask = all_skips(model).session("", levels_of(model)), lambda *unused: torch.zeros(1, 1, 1)
    a, b = run.call(levels_of(model)[0], "a"), run.call(levels_of(model)[0], "b")
    a(lambda z: z, lambda: torch.ones(1, 1, 1))
    b(lambda z: z, lambda: 2 * torch.ones(1, 1, 1))
    level = levels_of(model)[1]
    assert [float(run.call(level, name)(ask, ask)) for name in "abc"] == [1, 2, 0]  # of “c” there is nothing yet


def test_what_is_kept_is_never_older_than_a_step(model: LazyDiffusion) -> None:
    """A prompt that shares a call with another one at some steps and has its own at others."""
    levels, zero, one = levels_of(model), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    run = all_skips(model).session("", levels)

    def ask(step: int, prompts: str) -> float:
        return float(run.call(levels[step], prompts)(lambda z: z, lambda: one if step else zero))

    assert ask(0, "a") == 0 and ask(1, "a") == 0 and ask(2, "ab") == 1
    assert ask(3, "a") == 1  # what was kept at step 1 is not used


# Scores


def test_a_score_is_lazydits_at_its_size_and_the_same_for_every_hole() -> None:
    z, weight = torch.randn(2, TOKENS, 8), 0.05 * torch.randn(8)
    assert torch.allclose(score(z, weight, None), torch.sigmoid((z @ weight).sum(-1)), atol=1e-5)
    assert torch.allclose(score(z.repeat(1, 3, 1), weight, None), score(z, weight, None), atol=1e-5)
    valid = torch.arange(TOKENS + 9) < TOKENS
    padded = torch.cat((z, torch.full((2, 9, 8), 1e4)), dim=1)
    assert torch.allclose(score(padded, weight, valid.expand(2, -1)), score(z, weight, None), atol=1e-5)


def test_a_threshold_decides_at_and_above_it() -> None:
    gates = Gates([1.0, 0.5, 0.0], "", torch.tensor([[[0.0]], [[1.0]]]), torch.ones(2, 1), {})
    z = torch.tensor([[[1e-3]], [[-1e-3]], [[0.0]]])
    assert gates.computed(1, 0, z, None) == [True, False, True] and gates.computed(0, 0, z, None) is None
    gates.threshold = 0.6
    assert gates.computed(1, 0, z, None) == [False, False, False]


def test_fixed_decisions_take_the_lowest_scores_of_trained_gates(model: LazyDiffusion) -> None:
    gates = gates_of(model, 0.1)
    table = torch.tensor(gates.fixed(0.25).table)
    assert table.sum() == 6 and not table[::2].any()
    odd = gates.scores[1::2]
    assert odd[table[1::2]].max() <= odd[~table[1::2]].min()
    assert torch.equal(torch.tensor(gates.fixed().table)[1::2], odd < 0.5)
    with pytest.raises(ValueError, match="cannot be skipped: choose 0 to 0.50"):
        gates.fixed(0.6)


def test_watching_measures_how_outputs_change(model: LazyDiffusion) -> None:
    watch, image = SkipCalibrator(levels_of(model), MODULES), scene(1)
    outputs: list[Tensor] = []
    parts = [part for block in model.decoder.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(lambda m, args, out: outputs.append(out)) for part in parts]
    edit(model, *image[:2], "a tree", settings=SampleSettings(sampling_of(model), skip=watch))
    for handle in handles:
        handle.remove()
    said = torch.stack(outputs).unflatten(0, (STEPS, MODULES))[:, :, 0]
    cosine = (said[1:] * said[:-1]).sum(-1) / said[1:].norm(dim=-1) / said[:-1].norm(dim=-1)
    assert torch.allclose(watch.change[1:], 1 - cosine.mean(-1), atol=1e-5) and watch.change[0].isinf().all()
    skips = watch.table_of(0.3)
    assert watch.most == (STEPS // 2) / STEPS
    table = torch.tensor(skips.table)
    assert table.sum() == round(0.3 * STEPS * MODULES) and not table[::2].any()
    steps = watch.change.mean(1)[1::2].argsort() * 2 + 1  # the least change first
    whole, part, none = table[steps]
    changed = watch.change[steps[1]]
    assert whole.all() and not none.any() and changed[part].max() <= changed[~part].min()


# What does not fit


def test_gates_of_another_model_or_schedule_are_refused(model: LazyDiffusion) -> None:
    gates = gates_of(model, 0.1)
    other = Gates(gates.levels, "another", gates.weights, gates.scores, {})
    with pytest.raises(ValueError, match="trained for another model"):
        sampled(model, other)
    context, fewer = canvases(model), replace(sampling_of(model), steps=5)
    with pytest.raises(ValueError, match=r"for 6 steps \(noise levels .* this sampling has 5 steps"):
        sample(model, context, PROMPTS, SEEDS, SampleSettings(fewer, skip=gates))
    with pytest.raises(ValueError, match="this sampling has 12 steps"):
        sample(model, context, PROMPTS, SEEDS, SampleSettings(replace(fewer, steps=12), skip=gates))
    with pytest.raises(ValueError, match="between its steps, at noise level"):
        gates.session(model.fingerprint, gates.levels).call((gates.levels[2] + gates.levels[3]) / 2, "a")


def test_a_sketch_takes_the_last_steps(model: LazyDiffusion) -> None:
    gates = all_skips(model)
    sketch = torch.rand(1, 3, 96, 96)
    with counted(model) as rows:
        sampled(model, gates, sketch=sketch, strength=0.6)
    steps = len(from_strength(levels_of(model), 0.6, model.config.prediction == "iddpm")) - 1
    assert 2 <= steps < STEPS and gates.asked == steps * MODULES * 2 and gates.asked - gates.skipped == sum(rows)
    assert 0 < gates.ratio <= 0.5


def test_a_part_of_the_steps_takes_their_gates(model: LazyDiffusion) -> None:
    gates, levels = gates_of(model, 0.1), levels_of(model)
    run = gates.session(model.fingerprint, levels[1:4])
    assert [run.call(level, "a").step for level in levels[1:3]] == [1, 2]
    with pytest.raises(ValueError, match="between its steps"):
        run.call(levels[4], "a")


def test_pixels_outside_the_mask_stay(model: LazyDiffusion) -> None:
    image, mask, prompt = scene(3)
    result = edit(model, image, mask, prompt, settings=SampleSettings(sampling_of(model), skip=all_skips(model)))
    assert torch.equal(result[mask.expand_as(result) == 0], image[mask.expand_as(image) == 0])


# Files


def test_files_come_back_as_they_were(model: LazyDiffusion, tmp_path: Path) -> None:
    gates = gates_of(model, 0.1)
    gates.settings["steps"] = 500
    gates.save(tmp_path / "a.gates.safetensors")
    back = load_gates(tmp_path / "a.gates.safetensors", threshold=0.4)
    assert torch.equal(back.weights, gates.weights) and torch.equal(back.scores, gates.scores)
    assert (back.model, back.levels, back.settings) == (gates.model, gates.levels, {"steps": 500})
    assert (back.threshold, gates.threshold) == (0.4, 0.5)


def test_files_that_are_none_say_so(model: LazyDiffusion, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.gates.safetensors"
    with pytest.raises(ValueError, match="there is no such file"):
        load_gates(path)
    gates = gates_of(model, 0.1)
    gates.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_gates(path)
    monkeypatch.setattr(module, "FORMAT", 2)
    gates.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="gates of format 2 are unknown"):
        load_gates(path)
    Gates(gates.levels[1:], "", gates.weights, gates.scores, {}).save(path)
    with pytest.raises(ValueError, match="damaged, its weights are not of the 5 steps"):
        load_gates(path)
    from lazydiff.model.checkpoint import save_checkpoint

    save_checkpoint(model, path)
    with pytest.raises(ValueError, match="these are no gates"):
        load_gates(path)
