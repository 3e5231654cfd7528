"""Gates in the host: as in the library, for every sampler, and nothing of a sampling is left when it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lazydiff.evaluation.laboratory import SMALL

from .in_process import Pack, scene

pytestmark = pytest.mark.host

STEPS = 10
CLOSE = 1e-4  # sums in another order, over tens of steps


class Graph:
    """The shipped model with random gates at every second of ten steps, a context and prompts."""

    def __init__(self, pack: Pack, folder: Path):
        import folder_paths

        self.pack = pack
        self.model, self.clip, self.vae = pack.call("LazyCheckpointLoader", SMALL.name)
        picture, mask, self.caption = scene(3)
        self.image, self.mask = picture.movedim(1, -1), mask[:, 0]
        self.positive, self.negative = (pack.call("CLIPTextEncode", self.clip, t)[0] for t in (self.caption, ""))
        self.context, self.latent = pack.call("LazyContextEncode", self.model, self.vae, self.image, self.mask, 0, 0)
        checkpoint = pack.part("lazydiff.model.checkpoint")
        self.library = checkpoint.load_checkpoint(SMALL)
        self.gates = pack.part("lazydiff.cache.module_skip")
        weights = 0.05 * torch.randn(STEPS, 12, 192, generator=torch.Generator().manual_seed(0))
        weights[::2] = 0
        scores = torch.rand(STEPS, 12, generator=torch.Generator().manual_seed(1))
        levels = [1 - i / STEPS for i in range(STEPS + 1)]
        self.random = self.gates.Gates(levels, self.library.fingerprint, weights, scores, {})
        self.random.save(folder / "random.gates.safetensors")
        self.gates.Gates(levels, "another", weights, scores, {}).save(folder / "foreign.gates.safetensors")
        folder_paths.add_model_folder_path("lazydiffusion_gates", str(folder))

    def gated(self, gates: str, ratio: float, threshold: float = 0.5) -> Any:
        return self.pack.call("LazyGates", self.model, gates, ratio, threshold)[0]

    def sampled(self, model: Any, sampler: str = "euler", cfg: float = 1.0, steps: int = STEPS) -> torch.Tensor:
        inputs = (self.positive, self.negative, 7, steps, cfg, sampler, "simple", 1.0, 2)
        return self.pack.call("LazySample", model, self.context, *inputs)[0]["samples"]


@pytest.fixture(scope="module")
def graph(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return Graph(pack, tmp_path_factory.mktemp("gates"))


@pytest.fixture
def told(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user is shown."""
    lines: list[str] = []
    monkeypatch.setattr(graph.pack.part("nodes.host.stock_gates"), "show", lines.append)
    return lines


@pytest.fixture
def computed(graph: Graph) -> Any:
    """Rows that went through each attention and MLP of the decoder's blocks."""
    rows: list[int] = []
    parts = [part for block in graph.model.model.diffusion_model.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(lambda m, args, out: rows.append(len(out))) for part in parts]
    yield rows
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_gated_samplings_equal_the_librarys(
    graph: Graph, told: list[str], computed: list[int], cfg: float, ratio: float
) -> None:
    part, library = graph.pack.part("lazydiff.pipeline.sample"), graph.library
    gates = graph.random.fixed(ratio) if ratio else graph.random
    gates.reset()
    sampling = replace(library.config.sampling, sampler="euler", steps=STEPS, guidance=cfg)
    context = graph.pack.part("lazydiff.pipeline.encode").encode(library, *scene(3)[:2])
    settings = part.SampleSettings(sampling, skip=gates)
    tokens = part.sample(library, context, [graph.caption] * 2, [7, 8], settings)
    latents = graph.sampled(graph.gated("random.gates.safetensors", ratio), cfg=cfg)
    found = graph.pack.part("lazydiff.core.tokens").patchify(latents, 1)
    assert torch.allclose(context.hole.tile(2).gather(found), tokens, atol=CLOSE)
    assert not torch.allclose(latents, graph.sampled(graph.model, cfg=cfg), atol=CLOSE)
    asked = STEPS * 12 * 2 * cfg
    assert gates.asked == asked and 0 < gates.ratio < 0.5
    assert told == [f"Lazy Gates: {gates.ratio:.0%} of the attentions and MLPs were not computed."]
    assert sum(computed) == asked - gates.skipped + asked  # and the sampling without gates


def test_calibration_is_a_full_sampling_that_decides_for_the_next(
    graph: Graph, told: list[str], computed: list[int]
) -> None:
    model, full = graph.gated("calibrate", 0.3), graph.sampled(graph.model)
    computed.clear()
    assert torch.equal(graph.sampled(model), full) and "computed everything" in told[-1]
    asked = sum(computed)
    computed.clear()
    again = graph.sampled(model)
    assert sum(computed) == round(0.7 * asked) and "30% of the attentions" in told[-1]
    assert not torch.equal(again, full) and (again - full).abs().mean() < 0.1 * full.std()
    assert torch.equal(graph.sampled(model), again)
    # Other steps are calibrated for themselves; the host's copies of the MODEL know of it.
    assert torch.equal(graph.sampled(model, steps=6), graph.sampled(graph.model, steps=6))
    graph.sampled(model.clone(), steps=6)
    assert [("calibrated" in line) for line in told] == [True, False, False, True, False]


@pytest.mark.parametrize("sampler", ["ancestral (as trained)", "euler_ancestral", "heun", "dpmpp_2m", "lcm"])
@pytest.mark.parametrize("gates", ["random.gates.safetensors", "calibrate"])
def test_samplers_run_and_the_outside_stays(graph: Graph, told: list[str], sampler: str, gates: str) -> None:
    model = graph.gated(gates, 0.4)
    for _ in range(2):
        latents = graph.sampled(model, sampler)
    assert torch.isfinite(latents).all() and "were not computed" in told[-1] and "0%" not in told[-1].split("%")[0]
    shown = (graph.latent["noise_mask"] == 0).expand_as(latents[:1]).expand_as(latents)
    assert torch.equal(latents[shown], graph.latent["samples"].expand_as(latents)[shown])


def test_stock_samplers_and_a_part_of_the_steps(graph: Graph, told: list[str]) -> None:
    """KSampler (Advanced) in two halves, without a context of ours, is KSampler in one."""
    model = graph.gated("random.gates.safetensors", 0.4)
    prompts = graph.positive, graph.negative
    whole = graph.pack.call("KSampler", model, 7, STEPS, 1.0, "euler", "simple", *prompts, graph.latent, 1.0)[0]
    half = graph.latent
    for add, first, last in (("enable", 0, 6), ("disable", 6, STEPS)):
        half = graph.pack.call(
            "KSamplerAdvanced", model, add, 7, STEPS, 1.0, "euler", "simple", *prompts, half, first, last,
            "enable" if last < STEPS else "disable",
        )[0]  # fmt: skip
    # The second half begins with nothing kept, at a step that computes everything anyway.
    assert torch.allclose(half["samples"], whole["samples"], atol=CLOSE)
    assert len(told) == 3 and all("were not computed" in line for line in told)


def test_an_interrupted_sampling_leaves_nothing(graph: Graph, told: list[str], monkeypatch: Any) -> None:
    import comfy.model_management as mm
    import latent_preview

    model, prepare = graph.gated("random.gates.safetensors", 0.0), latent_preview.prepare_callback
    first = graph.sampled(model)
    key = graph.pack.part("nodes.host.gates").KEY
    gated = model.model_options["transformer_options"][key]

    def stopping(*args: Any, **kwargs: Any) -> Any:
        def stop(step: int, *others: Any) -> None:
            assert gated.run.kept
            if step == 3:
                raise mm.InterruptProcessingException

        return stop

    monkeypatch.setattr(latent_preview, "prepare_callback", stopping)
    with pytest.raises(mm.InterruptProcessingException):
        graph.sampled(model)
    assert gated.run is None and len(told) == 1
    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    assert torch.equal(graph.sampled(model), first)


def test_an_interrupted_calibration_decides_nothing(graph: Graph, told: list[str], monkeypatch: Any) -> None:
    import comfy.model_management as mm

    model = graph.gated("calibrate", 0.3)

    def stop(*args: Any) -> None:
        raise mm.InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr("latent_preview.prepare_callback", lambda *args: stop)
        with pytest.raises(mm.InterruptProcessingException):
            graph.sampled(model)
    assert not told
    graph.sampled(model)
    assert "calibrated" in told[-1]


def test_prompts_of_regions_keep_their_own(graph: Graph, told: list[str]) -> None:
    """Two prompts in parts of the hole go through the model together with the negative one."""
    upper = torch.zeros(1, 96, 96)
    upper[:, :48] = 1
    place = graph.pack.host.NODE_CLASS_MAPPINGS["ConditioningSetMask"]().append
    both = [place(graph.positive, part, "default", 1.0)[0][0] for part in (upper, 1 - upper)]
    inputs = (both, graph.negative, 7, STEPS, 2.0, "euler", "simple", 1.0, 1)
    model = graph.gated("random.gates.safetensors", 0.0)
    latents = graph.pack.call("LazySample", model, graph.context, *inputs)[0]["samples"]
    assert torch.isfinite(latents).all() and "were not computed" in told[-1]


# What does not fit


def test_other_models_steps_and_samplers_are_refused_in_words(graph: Graph) -> None:
    with pytest.raises(ValueError, match="trained for another model"):
        graph.gated("foreign.gates.safetensors", 0.0)
    model = graph.gated("random.gates.safetensors", 0.0)
    with pytest.raises(ValueError, match="these gates are for 10 steps .*, this sampling has 8 steps"):
        graph.sampled(model, steps=8)
    with pytest.raises(ValueError, match="asks the model between its steps"):
        graph.sampled(model, "dpmpp_2s_ancestral")
    with pytest.raises(ValueError, match="cannot be skipped: choose 0 to 0.50"):
        graph.gated("random.gates.safetensors", 0.6)


def test_gates_are_no_checkpoints(graph: Graph) -> None:
    import folder_paths

    folder_paths.filename_list_cache.clear()
    kinds = graph.pack.host.NODE_CLASS_MAPPINGS

    def options(node: str) -> list[str]:
        schema = kinds[node].define_schema()
        return next(each.options for each in schema.inputs if each.id in ("checkpoint", "gates"))

    assert {"random.gates.safetensors", "calibrate"} <= set(options("LazyGates"))
    assert SMALL.name in options("LazyCheckpointLoader") and SMALL.name not in options("LazyGates")
    assert not any(name.endswith(".gates.safetensors") for name in options("LazyCheckpointLoader"))
