"""Module skipping (gates): attentions and MLPs that would answer as at the step before are not computed again.

Every module's output on the hole tokens is kept until the next step. There each module is either computed, or what is
kept stands in for it; modulation, residual and cross-attention are always those of the step. Source: LazyDiT (Shen et
al. 2024, 2412.12444), carried from whole canvases to hole tokens.

    SkipPolicy      decides which modules are computed
    Gates           trained: a score of each module's input decides, row by row
    SkipTable       decided beforehand, the same for every row: nothing is read back from the device
    SkipCalibrator  computes everything and measures how much each module's output changes, for a table without training
    SkipSession     one sampling: what it keeps, and what each call of the decoder does
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.checks import Range, shortened
from ..core.files import check_file, whole_file
from ..model.layers import TokenLayout

TOKENS = 256  # of LazyDiT's models at 256 px: their scores are sums over so many
MODULES = 2  # of a block: its self-attention and its MLP
THRESHOLD = 0.5
FORMAT = 1
METADATA = "lazydiffusion_gates"  # the metadata entry that tells files of gates from all others
SUFFIX = ".gates.safetensors"
LEVEL = Range(0, 1)
SAME = 1e-3  # noise levels that differ by less are one


class SkipPolicy:
    """Which modules a sampling computes: all of them, unless a subclass decides otherwise.

    levels: noise levels of the sampling that they are for, falling, and 0 at their end
    model: fingerprint of the model that they are for; empty: any
    """

    def __init__(self, levels: Sequence[float], model: str = ""):
        self.levels, self.model = tuple(levels), model
        self.asked = self.skipped = 0  # modules, counted once for each row of a call, in all samplings

    @property
    def ratio(self) -> float:
        """Share of the modules that were not computed, 0…1."""
        return self.skipped / max(self.asked, 1)

    def reset(self) -> None:
        self.asked = self.skipped = 0

    def check(self, model: str) -> None:
        """Errors: ValueError for another model, by its fingerprint."""
        if self.model not in ("", model):
            raise ValueError("these gates were trained for another model: train them for this one")

    def check_size(self, modules: int, width: int) -> None:
        """Errors: ValueError for a network of other sizes."""

    def session(self, model: str, levels: Sequence[float]) -> SkipSession:
        """Begin a sampling with nothing kept.

        model: its fingerprint; levels: of the sampling, falling, down to the one that its last step arrives at
        Errors: ValueError for another model, or steps that are not some or all of `self.levels` in a row.
        """
        self.check(model)
        for first in range(len(self.levels) - len(levels) + 1):
            own = self.levels[first : first + len(levels)]
            if all(abs(a - b) <= SAME for a, b in zip(own, levels, strict=True)):
                return SkipSession(self, range(first, first + len(levels) - 1))
        raise ValueError(
            f"these gates are for {steps_text(self.levels)}, this sampling has {steps_text(levels)}: choose the "
            "steps, sampler and scheduler that they are for, or gates for these"
        )

    def skips(self, step: int, module: int) -> bool:
        """Whether what is kept stands in, whatever the module's input is."""
        return False

    def computed(self, step: int, module: int, z: Tensor, valid: Tensor | None) -> list[bool] | None:
        """Which rows are computed of a module with this input [B, n, d], None: all; valid: [B, n] or None."""
        return None

    def on_computed(self, step: int, module: int, fresh: Tensor, kept: Tensor, valid: Tensor | None) -> None:
        """A module was computed whose output of the step before is kept."""


class SkipSession:
    """One sampling: what it keeps of each prompt's rows, one output for each module; steps: those that it takes"""

    def __init__(self, decisions: SkipPolicy, steps: range):
        self.decisions, self.steps = decisions, steps
        self.kept: dict[Hashable, list[Tensor]] = {}
        self.latest: dict[Hashable, int] = {}  # the step at which it was kept

    def gate_at(self, prompts: Hashable) -> Callable[[float, Tensor | None], ModuleCall]:
        """`call` for prompts that share all of their calls, as denoisers take it."""
        return lambda level, valid: self.call(level, prompts, valid)

    def call(self, level: float, prompts: Hashable, valid: Tensor | None = None) -> ModuleCall:
        """What the decoder's next call is to do, at a noise level, for the prompts that share its batch.

        valid: [B, n] bool, tokens that are no padding; None: all
        Errors: ValueError for a noise level between the steps.
        """
        step = min(self.steps, key=lambda i: abs(self.decisions.levels[i] - level))
        if abs(self.decisions.levels[step] - level) > SAME:
            raise ValueError(
                f"this sampler asks the model between its steps, at noise level {level:.3g}, which these gates were "
                "not made for: choose one that does not, such as euler"
            )
        if step - self.latest.get(prompts, step) > 1:  # prompts may share their calls with others at some steps
            del self.kept[prompts]
        self.latest[prompts] = step
        return ModuleCall(self.decisions, step, self.kept.setdefault(prompts, []), valid)

    def clear(self) -> None:
        self.kept.clear()
        self.latest.clear()


class ModuleCall:
    """One call of the decoder: its modules, attention and MLP of each block in turn."""

    def __init__(self, decisions: SkipPolicy, step: int, kept: list[Tensor], valid: Tensor | None):
        self.decisions, self.step, self.kept, self.valid = decisions, step, kept, valid
        self.module = 0

    def __call__(self, module: Callable[..., Tensor], prepare: Callable[[], Tensor], *others: Any) -> Tensor:
        """The module's output [B, n, d], or what stands in for it.

        prepare: makes the module's input; others: its further arguments; a `TokenLayout` among them is cut to
            the rows that are computed, nothing else is
        """
        number = self.module
        self.module += 1
        if number == len(self.kept):  # the first call of this sampling for these prompts
            self.kept.append(module(prepare(), *others))
            self.count(len(self.kept[number]), 0)
            return self.kept[number]
        kept, decisions = self.kept[number], self.decisions
        if decisions.skips(self.step, number):
            self.count(len(kept), len(kept))
            return kept
        z = prepare()
        rows = decisions.computed(self.step, number, z, self.valid)
        self.count(len(z), 0 if rows is None else len(rows) - sum(rows))
        if rows is None or all(rows):
            fresh = module(z, *others)
            decisions.on_computed(self.step, number, fresh, kept, self.valid)
        elif any(rows):
            chosen = torch.tensor(rows, device=z.device).nonzero()[:, 0]
            some = module(z[chosen], *(each.of(chosen) if isinstance(each, TokenLayout) else each for each in others))
            fresh = kept.index_copy(0, chosen, some)
        else:
            fresh = kept
        self.kept[number] = fresh
        return fresh

    def count(self, asked: int, skipped: int) -> None:
        self.decisions.asked += asked
        self.decisions.skipped += skipped


class Gates(SkipPolicy):
    """Trained gates of one model and one list of noise levels.

    weights: [steps, modules, width]; where all of a gate's are zero, its module is always computed. Training reaches
        every second step, so that what stands in is never older than one step
    scores: [steps, modules], means over scenes, by which `fixed` decides; settings: how they were trained
    threshold: modules whose score is lower are not computed
    """

    def __init__(
        self, levels: Sequence[float], model: str, weights: Tensor, scores: Tensor, settings: dict[str, Any],
        threshold: float = THRESHOLD,
    ):  # fmt: skip
        super().__init__(levels, model)
        self.weights, self.scores, self.settings, self.threshold = weights, scores, settings, threshold
        self.trained = weights.any(-1).tolist()

    def check_size(self, modules: int, width: int) -> None:
        own = tuple(self.weights.shape[1:])
        if own != (modules, width):
            raise ValueError(f"these gates are for {own[0]} modules {own[1]} wide, the model has {modules} of {width}")

    def computed(self, step: int, module: int, z: Tensor, valid: Tensor | None) -> list[bool] | None:
        if not self.trained[step][module]:
            return None
        self.weights = self.weights.to(z.device)
        rows: list[bool] = (score(z, self.weights[step, module], valid) >= self.threshold).tolist()
        return rows

    def fixed(self, ratio: float | None = None) -> SkipTable:
        """A table for all rows alike, by the mean scores: below the threshold, or the `ratio` of lowest ones."""
        open_gates = self.scores.masked_fill(~torch.tensor(self.trained), torch.inf)
        if ratio is None:
            return SkipTable(self.levels, open_gates < self.threshold, self.model)
        return SkipTable(self.levels, lowest(open_gates, ratio), self.model)

    def save(self, path: Path | str) -> None:
        """Write them; a file that was there stays whole until the new one is."""
        about = {"format": FORMAT, "model": self.model, "levels": self.levels, "settings": self.settings}
        tensors = {"weights": self.weights.float().cpu().contiguous(), "scores": self.scores.float().cpu().contiguous()}
        with whole_file(Path(path)) as unfinished:
            save_file(tensors, unfinished, {METADATA: json.dumps(about)})


def load_gates(path: Path | str, threshold: float = THRESHOLD) -> Gates:
    """Read trained gates. Errors: ValueError for a missing, damaged or foreign file, or an unknown version."""
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if METADATA not in metadata:
        raise ValueError(f"{path}: these are no gates (the file's metadata has no entry “{METADATA}”)")
    try:
        about = json.loads(metadata[METADATA])
        version = about["format"]
        if version != FORMAT:
            raise ValueError(f"gates of format {shortened(version)} are unknown here, this version reads {FORMAT}")
        levels, model, settings = about["levels"], about["model"], about["settings"]
        weights, scores = tensors["weights"], tensors["scores"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the description in its metadata cannot be read ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if problem := damage(levels, model, settings, weights, scores):
        raise ValueError(f"{path}: damaged, {problem}")
    return Gates(levels, model, weights.float(), scores.float(), settings, threshold)


def damage(levels: Any, model: Any, settings: Any, weights: Tensor, scores: Tensor) -> str | None:
    """What gates cannot be, if they are that."""
    if not isinstance(levels, list) or len(levels) < 2 or not all(LEVEL.has(level) for level in levels):
        return "its noise levels are no list of numbers from 1 to 0"
    if any(low >= high for high, low in pairwise(levels)):
        return "its noise levels do not fall"
    if not isinstance(model, str) or not isinstance(settings, dict):
        return "it does not name its model and its settings"
    if weights.ndim != 3 or weights.shape[:2] != scores.shape or len(weights) != len(levels) - 1 or not weights.numel():
        return f"its weights are not of the {len(levels) - 1} steps that it names"
    for tensor in (weights, scores):
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            return "its weights or scores are not numbers"
    return None


class SkipTable(SkipPolicy):
    """Modules that are not computed, decided beforehand; table: [steps, modules] bool, True = what is kept stands in"""

    def __init__(self, levels: Sequence[float], table: Tensor, model: str = ""):
        super().__init__(levels, model)
        self.table: list[list[bool]] = table.tolist()

    def skips(self, step: int, module: int) -> bool:
        return self.table[step][module]


class SkipCalibrator(SkipPolicy):
    """Computes everything and measures how alike consecutive outputs of a module are; no part of LazyDiT.

    modules: of the decoder, two for each block
    """

    def __init__(self, levels: Sequence[float], modules: int):
        super().__init__(levels)
        self.cosines: list[list[list[Tensor]]] = [[[] for _ in range(modules)] for _ in levels[:-1]]

    def on_computed(self, step: int, module: int, fresh: Tensor, kept: Tensor, valid: Tensor | None) -> None:
        cosine = F.cosine_similarity(fresh.float(), kept.float(), dim=-1)
        self.cosines[step][module].append(token_mean(cosine, valid).mean())

    @property
    def change(self) -> Tensor:
        """[steps, modules] one minus the mean cosine similarity; infinite where it was not seen."""
        seen = [torch.stack(cosines).mean() for step in self.cosines for cosines in step if cosines]
        means = iter(torch.stack(seen).tolist() if seen else [])  # a GPU is waited for once
        return torch.tensor([[1 - next(means) if cosines else torch.inf for cosines in step] for step in self.cosines])

    @property
    def most(self) -> float:
        """The largest share that `table_of` can give."""
        return float(self.skippable.isfinite().double().mean())

    @property
    def skippable(self) -> Tensor:
        """`change` at every second step, so that what stands in is never older than one step; elsewhere infinite."""
        change = self.change
        change[::2] = torch.inf
        return change

    def table_of(self, ratio: float) -> SkipTable:
        """The `ratio` of all modules: whole steps, those at which outputs change least, and of the last one that is
        needed the modules that change least. Errors: ValueError for more than there are."""
        # Modules that are chosen one by one do more harm, however little each changes (docs/benchmarks.md#gates).
        change = self.skippable
        steps = change.mean(1, keepdim=True).argsort(0).argsort(0)
        within = change.argsort(1).argsort(1) / change.shape[1]
        return SkipTable(self.levels, lowest((steps + within).masked_fill(change.isinf(), torch.inf), ratio))


def score(z: Tensor, weight: Tensor, valid: Tensor | None) -> Tensor:
    """How much each row [B] of a module's input [B, n, d] asks for the module to be computed, 0…1.

    LazyDiT's sum over tokens, as a mean times `TOKENS`, so that a gate means the same for holes of all sizes.
    """
    return torch.sigmoid(TOKENS * token_mean((z * weight.to(z.dtype)).sum(-1).float(), valid))


def token_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """[B, n] -> [B], over the tokens that are no padding."""
    return x.mean(-1) if valid is None else (x * valid).sum(-1) / valid.sum(-1).clamp(min=1)


def lowest(values: Tensor, ratio: float) -> Tensor:
    """Which are the lowest `ratio` of all, as bool. Errors: ValueError when fewer are finite."""
    count, possible = round(ratio * values.numel()), int(values.isfinite().sum())
    if not 0 <= count <= possible:
        most = possible / values.numel()
        raise ValueError(f"a share of {ratio:g} of the modules cannot be skipped: choose 0 to {most:.2f}")
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().argsort(stable=True)[:count]] = True
    return chosen.view_as(values)


def steps_text(levels: Sequence[float]) -> str:
    first = " ".join(f"{level:.3g}" for level in levels[:3])
    return f"{len(levels) - 1} steps (noise levels {first} …)"
