"""What a lazy UNet loses against itself computing every step whole: the trained one of `scene_unet.py`.

    python -m benchmarks.unet_quality --output DIR --weights FILE [--scenes 60] [--quick]

Asks the questions that the paper's baselines are asked on the built-in scenes. Likeness is measured in the hole, before
blending, against the same network with the same noise and every step whole. Rows marked * answer the first tenth of the
questions. What the nodes' policies lose of the answers has bounds, by a bootstrap over pairs. Writes
`unet-quality.json` and `.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lazydiff.cache.kv_cache import UNET_THRESHOLD, CacheReader, CacheWriter, KVSettings, dilate
from lazydiff.cache.recording import RecordingSession, empty_cache, recorded_noise
from lazydiff.cache.unet_call import TiledUNet
from lazydiff.cache.unet_parts import UNetParts
from lazydiff.core.tokens import HoleTokens, patchify, unpatchify
from lazydiff.evaluation.baselines import psnr, seam_ratio
from lazydiff.evaluation.evaluate import PERCENTAGES, asked_tensors, blended, how_many, obeyed
from lazydiff.evaluation.intervals import Interval, paired_difference
from lazydiff.evaluation.judge import Judge
from lazydiff.evaluation.questions import Question, distant_siblings, object_questions, ordinary_questions
from lazydiff.model.config import Sampling
from lazydiff.model.latent_space import to_pixels
from lazydiff.sampling.flow import predict_clean
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.sampling.samplers import begin, make_sampler

from .harness import Harness, arguments
from .kv_report import table
from .scene_unet import CELL, GRID, SceneUNet

SEED = 31000  # of scenes that no training has seen
CAPTIONS = "caption_blank", "caption_against_siblings"
RULES = {figure: PERCENTAGES[figure] for figure in ("sibling_colour", *CAPTIONS)}
MAIN, FEWER = 3, 10  # settings that answer all questions, what the nodes do; the others answer one in so many
SAMPLING = Sampling(sampler="ancestral", steps=20, guidance=1.0, temperature=0.8)
# Of a map of 24 cells what 16 is of SD 1.5's 64: three resolutions of four in tiles.
SMALLEST = 6
AUTOMATIC = KVSettings(mode="anchors", threshold=UNET_THRESHOLD)
PROMPT = "the caption"  # by which a cache knows it


class Setting(NamedTuple):
    """What is measured in one row."""

    name: str
    kv: KVSettings | None = None  # None: every step whole
    corrected: bool = True  # whether group norms' statistics are corrected
    smallest: int = SMALLEST
    filled: bool = False  # whether recordings have an earlier result in the hole, of another seed, instead of nothing


SETTINGS = (
    Setting("dense"),
    Setting("recorded", KVSettings()),
    Setting("automatic", AUTOMATIC),
    *(Setting(f"{count} anchor{'s'[: count > 1]}", KVSettings(count)) for count in (1, 2, 4, 8)),
    Setting("automatic by the threshold of transformers", KVSettings(mode="anchors")),
    Setting("automatic, not corrected", AUTOMATIC, corrected=False),
    Setting("4 anchors, not corrected", KVSettings(4), corrected=False),
    *(
        Setting(f"recorded, {levels} level{'s'[: levels > 1]}{', an earlier result in the hole' if filled else ''}",
                KVSettings(levels=levels), filled=filled)
        for levels, filled in ((1, False), (3, False), (2, True))
    ),
    Setting("automatic, ring 0", AUTOMATIC._replace(ring=0)),
    Setting("automatic, ring 2", AUTOMATIC._replace(ring=2)),
    Setting("automatic, tiles at 24 and 12", AUTOMATIC, smallest=12),
    Setting("automatic, tiles everywhere", AUTOMATIC, smallest=1),
)  # fmt: skip


class Row(NamedTuple):
    setting: str
    scenes: int
    full_steps: float  # of 20, mean
    psnr: float  # dB, mean
    psnr_10: float  # tenth percentile
    sibling_colour: float  # percent
    caption: float
    seam_ratio: float


HEADS = {
    "": "{}", "questions of a kind": "{}", "full steps": "{:.1f}",
    "PSNR, dB": "{:.1f}", "lowest tenth": "{:.1f}", "sibling colour, %": "{:.1f}",
    "caption, %": "{:.1f}", "seam": "{:.2f}",
}  # fmt: skip


class Painted(NamedTuple):
    """The answer to one question."""

    picture: Tensor  # [1, 3, 96, 96] in 0…1
    full_steps: int


@torch.inference_mode()
def paint(model: SceneUNet, parts: UNetParts, setting: Setting, question: Question, seed: int) -> Painted:
    """An answer by way of a KV context, or with every step whole."""
    image, mask = asked_tensors([question], torch.device("cpu"))
    image = image * 2 - 1
    hole = HoleTokens.from_mask(mask, CELL)
    canvas, network = patchify(model.latent.encode(image), 1), model.bound(model.seen(image, mask), [question.caption])
    noise, visible = (
        CanvasNoise([seed], cells, canvas.shape[-1]) for cells in (hole, HoleTokens.everything(1, GRID))
    )
    around, (sampler, sigmas) = visible.next(), make_sampler(SAMPLING)
    kv = setting.kv or KVSettings()
    computed = dilate(hole, kv.ring).cells(1)[0, 0]
    tiles = TiledUNet(parts, hole.cells(1)[0, 0], computed, setting.smallest, setting.corrected)
    session = None if setting.kv is None or tiles.share == 1 else empty_cache(kv).session(sigmas)
    beneath = hole.scatter(torch.zeros_like(hole.gather(canvas)), canvas)
    if setting.filled:
        made = paint(model, parts, SETTINGS[0], question, seed + 10**6).picture
        beneath = patchify(model.latent.encode(made * 2 - 1), 1)

    def whole_or_lazy(cells: Tensor, sigma: float, action: CacheWriter | CacheReader) -> Tensor:
        with tiles.calling(action):
            clean = predict_clean(network, cells, torch.tensor([sigma]), model.variance)
        action.end()
        return clean

    def denoise(z: Tensor, sigma: float) -> Tensor:
        cells = hole.scatter(z, (1 - sigma) * canvas + sigma * around)
        if session is None:
            return hole.gather(predict_clean(network, cells, torch.tensor([sigma]), model.variance))
        if isinstance(session, RecordingSession):
            for level in session.missing(sigma, PROMPT):
                noisy = (1 - level) * beneath + level * recorded_noise(canvas.shape)
                whole_or_lazy(noisy, level, session.record([level], [PROMPT]))
        return hole.gather(whole_or_lazy(cells, sigma, session.call(sigma, [PROMPT])))

    made = sampler(denoise, begin(noise.next(), sigmas[0]), sigmas, noise.next)
    picture = to_pixels(model.latent.decode(unpatchify(hole.scatter(made, canvas), GRID, 1)))
    if isinstance(session, RecordingSession):
        return Painted(picture, len(session.levels))
    return Painted(picture, SAMPLING.steps if session is None else session.recorded)


Asked = Mapping[str, Sequence[Question]]


class Answers(NamedTuple):
    """To as many questions of each kind, in one setting."""

    painted: Mapping[str, Sequence[Painted]]
    finished: Mapping[str, np.ndarray]  # by kind: blended
    obeyed: Mapping[str, np.ndarray]  # by figure: which of its questions are answered as they ask, bool [S]

    @property
    def number(self) -> int:
        return len(self.painted["ordinary"])

    def first(self, number: int) -> Answers:
        return Answers(*({name: some[:number] for name, some in part.items()} for part in self))

    def pictures(self, kind: str) -> Tensor:
        """[S, 3, 96, 96] in 0…1, not blended"""
        return torch.cat([each.picture for each in self.painted[kind]])


class Measurement:
    """The questions, and what becomes of them in each setting."""

    def __init__(self, model: SceneUNet, scenes: int, quick: bool):
        self.model, self.parts = model, UNetParts.of(model.unet)
        self.judge = Judge(SEED, scenes=400 if quick else 1000)
        objects = object_questions(SEED, scenes)
        kinds = {kind: objects[kind] for kind, _ in RULES.values()} | {"sibling": distant_siblings(SEED, scenes)}
        self.asked: Asked = {**kinds, "ordinary": ordinary_questions(SEED, scenes)}

    def answers(self, setting: Setting, number: int) -> Answers:
        """To the first questions of each kind."""
        asked = {kind: some[:number] for kind, some in self.asked.items()}
        painted = {
            kind: [paint(self.model, self.parts, setting, question, i) for i, question in enumerate(some)]
            for kind, some in asked.items()
        }
        finished = {
            kind: blended(asked[kind], torch.cat([each.picture for each in some])) for kind, some in painted.items()
        }
        return Answers(painted, finished, obeyed(self.judge, RULES, asked, finished))

    def row(self, name: str, answers: Answers, dense: Answers) -> Row:
        """dense: answers to at least the same questions"""
        number = answers.number
        dense = dense.first(number)
        likeness = np.concatenate([
            psnr(some[:number], answers.pictures(kind), dense.pictures(kind)) for kind, some in self.asked.items()
        ])  # fmt: skip
        steps = float(np.mean([each.full_steps for some in answers.painted.values() for each in some]))
        share = {figure: 100 * float(each.mean()) for figure, each in answers.obeyed.items()}
        words = float(np.mean([share[figure] for figure in CAPTIONS]))
        seam = seam_ratio(self.asked["ordinary"][:number], answers.finished["ordinary"])
        tenth = float(np.percentile(likeness, 10))
        found = Row(name, number, steps, float(likeness.mean()), tenth, share["sibling_colour"], words, seam)
        print(found, flush=True)
        return found


def lost(dense: Answers, lazy: Answers) -> dict[str, Interval]:
    """Percentage points that are lost against every step whole."""
    kinds = {"sibling_colour_loss": ("sibling_colour",), "caption_loss": CAPTIONS}
    return {
        name: paired_difference(*([answers.obeyed[figure] for figure in figures] for answers in (dense, lazy)))
        for name, figures in kinds.items()
    }


def measure(measurement: Measurement, scenes: int) -> tuple[list[Row], dict[str, Interval]]:
    """Every setting's row, and what those lose that the nodes have. The others answer fewer questions."""
    few = -(-scenes // FEWER)
    answers = {each.name: measurement.answers(each, scenes) for each in SETTINGS[:MAIN]}
    whole = answers["dense"]
    rows = [measurement.row(name, all_of_them, whole) for name, all_of_them in answers.items()]
    rows += [measurement.row(f"{name} *", some.first(few), whole) for name, some in answers.items()]
    rows += [measurement.row(f"{each.name} *", measurement.answers(each, few), whole) for each in SETTINGS[MAIN:]]
    losses = {
        f"{figure}{ending}": loss
        for name, ending in (("automatic", ""), ("recorded", "_recorded"))
        for figure, loss in lost(whole, answers[name]).items()
    }
    return rows, losses


def figures(rows: Sequence[Row], losses: Mapping[str, Interval]) -> dict[str, float]:
    by_name = {row.setting: row for row in rows}
    dense, automatic = by_name["dense"], by_name["automatic"]
    found = {f"psnr_{count}": by_name[f"{count} anchor{'s'[: count > 1]} *"].psnr for count in (1, 2, 4, 8)}
    found |= {
        "psnr_recorded": by_name["recorded"].psnr,
        "psnr_auto": automatic.psnr, "full_steps_auto": automatic.full_steps,
        "psnr_auto_not_corrected": by_name["automatic, not corrected *"].psnr,
        "seam_ratio": automatic.seam_ratio, "seam_ratio_dense": dense.seam_ratio,
    }  # fmt: skip
    for name, loss in losses.items():
        found |= loss.figures(name)
    return {name: round(value, 3) for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "at most 4 scenes of each kind, a less trained judge")
    parser.add_argument("--weights", type=Path, required=True, help="of train_unet.py")
    parser.add_argument("--scenes", type=int, default=60, help="questions of each kind (%(default)s)")
    args = parser.parse_args(argv)
    harness = Harness.of(args)
    scenes = how_many(args.scenes, 4 if args.quick else args.scenes, least=2)
    rows, losses = measure(Measurement(SceneUNet.load(args.weights), scenes, args.quick), scenes)
    markdown = table(rows, HEADS)
    print(markdown)
    harness.write("unet-quality", figures(rows, losses), scenes=scenes, rows=[row._asdict() for row in rows])
    (harness.output / "unet-quality.md").write_text(markdown + "\n", "utf-8")


if __name__ == "__main__":
    main()
