"""Training of gates: the model stays as it is and learns which modules it can do without (LazyDiT, section 3.3).

For one noise level of the sampling at a time: the sampler takes the step before it in full and leaves the outputs of
all modules; at the level itself the model answers twice, in full, and with every module's output mixed with the one
that was left, by its score. The gates learn to make the answers alike, and pay for every module that they ask for.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from ..cache.module_skip import MODULES, Gates, SkipPolicy, SkipSession, score, token_mean
from ..core.checks import Range, check_ranges
from ..core.files import whole_file
from ..data.batch import Batch
from ..data.stream import ExampleStream, ReadingPlan, SceneExamples, read_batches
from ..model.config import Sampling
from ..model.context import LazyContext
from ..model.decoder import TextKeys
from ..model.layers import Gate, always
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.encode import encode
from ..pipeline.sample import PROMPTS, SampleSettings, sample
from ..sampling.denoiser import lazy_denoiser
from ..sampling.flow import Preconditioning
from ..sampling.noise import CanvasNoise
from ..sampling.samplers import FLOW_SAMPLERS, SampleFunction, begin, make_sampler
from .train import step_generator

LOG = ("step", "noise_level", "distance", "attention_score", "mlp_score")
RANGES = {
    "attention_penalty": Range(0, 1e6),
    "mlp_penalty": Range(0, 1e6),
    "steps": Range(1, 10**9, whole=True),
    "scenes": Range(1, 2**16, whole=True),
    "learning_rate": Range(0, 10, above=True),
    "drop_text": Range(0, 1),
    "seed": Range(0, 2**32 - 1, whole=True),
}
SCORED = 4  # batches whose mean scores go into the file


@dataclass(frozen=True)
class GateTraining:
    """Optimiser and data of one run; the penalties decide how many modules will be skipped."""

    attention_penalty: float = 1e-3
    mlp_penalty: float = 1e-3
    steps: int = 500
    scenes: int = 32
    learning_rate: float = 1e-4
    drop_text: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Errors: ValueError for settings that no training can have."""
        check_ranges(self, RANGES)


class Soft:
    """A call of the decoder in which every module's output is mixed with the one that was kept, by its score."""

    def __init__(self, weights: Tensor, kept: list[Tensor], valid: Tensor | None):
        self.weights, self.kept, self.valid = weights, kept, valid
        self.scores: list[Tensor] = []  # [B] of each module

    def __call__(self, module: Callable[..., Tensor], prepare: Callable[[], Tensor], *others: Any) -> Tensor:
        number, z = len(self.scores), prepare()
        asked = score(z, self.weights[number], self.valid)
        self.scores.append(asked)
        share = asked[:, None, None]
        return share * module(z, *others) + (1 - share) * self.kept[number]


class Scores(Gates):
    """Gates that compute everything, and collect what they would have decided by."""

    def __init__(self, gates: Gates):
        super().__init__(gates.levels, gates.model, gates.weights, gates.scores, gates.settings)
        self.collected: list[list[list[Tensor]]] = [[[] for _ in step] for step in gates.trained]

    def computed(self, step: int, module: int, z: Tensor, valid: Tensor | None) -> None:
        self.collected[step][module].append(score(z, self.weights[step, module], valid).mean())

    @property
    def means(self) -> Tensor:
        """[steps, modules]; 1 where no gate was asked."""
        return torch.tensor([[float(torch.stack(s).mean()) if s else 1.0 for s in step] for step in self.collected])


class EncodedScenes(NamedTuple):
    """A batch of scenes as a training step sees it."""

    context: LazyContext
    captions: list[str]
    text: TextKeys
    clean: Tensor  # [B, n, C·p·p]
    seeds: list[int]


def train_gates(model: LazyDiffusion, sampling: Sampling, training: GateTraining, output: Path) -> Gates:
    """Train gates for one model and one way to sample it, and write them to `output`, with a log beside them.

    Every second step of the sampling gets gates; the weights of the others stay zero, which always computes.
    Errors: ValueError for an odd number of steps, another sampler, impossible settings, a model of another prediction
    than "flow" or one that computes every token, all before work begins; and for a training that ends in what are no
    numbers.
    """
    training.check()
    if model.config.prediction != "flow" or model.config.network.dense:
        raise ValueError("gates are trained for flow models that compute hole tokens alone: this one is another")
    if sampling.sampler not in FLOW_SAMPLERS:
        raise ValueError(f"gates cannot be trained for the sampler {sampling.sampler}: choose euler or ancestral")
    if sampling.steps % 2:
        raise ValueError(f"{sampling.steps} steps: gates are trained for every second one, choose an even number")
    size, (sampler, levels) = model.config.network, make_sampler(sampling)
    # One tensor for each step: those that were not drawn have no gradient, and the optimiser leaves them alone.
    shape = MODULES * size.decoder_depth, size.width
    weights = [torch.zeros(shape, device=model.latent.mean.device, requires_grad=True) for _ in levels[:-1]]
    optimiser = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0)
    batches = scene_batches(training, size.token)
    rows: list[tuple[float, ...]] = []
    bar = trange(training.steps, unit="step")
    for number in bar:
        generator = step_generator(training.seed, number)
        scene = prepare(model, next(batches), training.drop_text, generator)
        at = 1 + 2 * int(torch.randint(sampling.steps // 2, (), generator=generator))
        session = SkipPolicy(levels).session(model.fingerprint, levels)
        z = step_before(model, scene, sampler, levels[at - 1 : at + 1], session)
        soft = Soft(weights[at], session.kept[PROMPTS], scene.context.hole.key_mask)
        distance = distillation(model, scene, z, levels[at], soft)
        attention, mlp = (torch.stack(soft.scores[kind::MODULES]).mean(1).sum() for kind in range(MODULES))
        (distance + training.attention_penalty * attention + training.mlp_penalty * mlp).backward()
        optimiser.step()
        optimiser.zero_grad()
        scores = (float(each.detach()) / size.decoder_depth for each in (attention, mlp))
        if not math.isfinite(apart := float(distance.detach())):
            raise ValueError(f"the distance is not a number at update {number}: the model or its settings fail")
        rows.append((number, levels[at], apart, *scores))
        bar.set_postfix({name: f"{value:.4f}" for name, value in zip(LOG[1:], rows[-1][1:], strict=True)})
    settings = {"sampling": asdict(sampling), **asdict(training)}
    together = torch.stack(weights).detach()
    if not together.isfinite().all():
        raise ValueError("the gates' weights are not numbers any more: choose lower penalties")
    gates = Gates(levels, model.fingerprint, together, torch.ones(together.shape[:2]), settings)
    gates.scores = mean_scores(model, sampling, gates, training)
    gates.save(output)
    write_log(output.with_suffix(".csv"), rows)
    return gates


def scene_batches(training: GateTraining, token: int, start: int = 0) -> Iterator[Batch]:
    plan = ReadingPlan(training.seed, training.scenes, readers=1, token=token)
    for [batch] in read_batches(ExampleStream(SceneExamples(training.seed), plan, range(1), start), 1):
        yield batch


@torch.no_grad()
def prepare(model: LazyDiffusion, batch: Batch, drop_text: float, generator: torch.Generator) -> EncodedScenes:
    device = model.latent.mean.device
    assert batch.image is not None
    image, mask = batch.image.to(device).float() / 255, batch.mask.to(device).float()
    context = encode(model, image, mask)
    context = context._replace(hole=context.hole.keep_padding())  # as in the model's training
    dropped = torch.rand(len(image), generator=generator) < drop_text
    captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), batch.captions, strict=True)]
    seeds = torch.randint(2**62, (len(image),), generator=generator).tolist()
    clean = context.hole.gather(model.tokens(image * 2 - 1))
    return EncodedScenes(context, captions, model.prompt(captions), clean, seeds)


@torch.no_grad()
def step_before(
    model: LazyDiffusion, scene: EncodedScenes, sampler: SampleFunction, levels: Sequence[float], session: SkipSession
) -> Tensor:
    """Noisy tokens at the second of two noise levels, after the sampler's own step to it from the truth made noisy at
    the first; `session` keeps the modules' outputs of that step."""
    gate_at = session.gate_at(PROMPTS)
    full = lazy_denoiser(model, scene.context, scene.captions, guidance=1.0, gate_at=gate_at)
    noise = CanvasNoise(scene.seeds, scene.context.hole, scene.clean.shape[-1])
    return sampler(full, begin(noise.next(), levels[0], scene.clean), levels, noise.next)


def distillation(model: LazyDiffusion, scene: EncodedScenes, z: Tensor, level: float, soft: Soft) -> Tensor:
    """Mean squared distance between the network's own answer and the soft one, over the tokens that are no padding;
    channels count by their variance, as in the model's training."""
    sigma = z.new_full((len(z),), level)
    x = Preconditioning.at(sigma, model.variance).scale * z

    def answer(gate: Gate) -> Tensor:
        return model.decoder(x, 1000 * sigma, scene.text, scene.context.hole, scene.context.tokens, gate=gate)

    with torch.no_grad():
        full = answer(always)
    weight = model.variance / model.variance.mean()
    error = (weight * (answer(soft) - full).square()).mean(-1)
    return token_mean(error, soft.valid).mean()


def mean_scores(model: LazyDiffusion, sampling: Sampling, gates: Gates, training: GateTraining) -> Tensor:
    """[steps, modules], over whole samplings of scenes that the training did not see."""
    scores = Scores(gates)
    device = model.latent.mean.device
    for batch in islice(scene_batches(training, model.config.network.token, training.steps), SCORED):
        assert batch.image is not None
        context = encode(model, batch.image.to(device).float() / 255, batch.mask.to(device).float())
        sample(model, context, batch.captions, range(len(batch.captions)), SampleSettings(sampling, skip=scores))
    return scores.means


def write_log(path: Path, rows: Sequence[tuple[float, ...]]) -> None:
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        csv.writer(file).writerows([LOG, *([f"{value:.5g}" for value in row] for row in rows)])
