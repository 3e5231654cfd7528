"""The library with its model on a GPU and pictures anywhere: nothing meets what is on another device, results come back
where the pictures were, and they are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from samples import scene
from tiny_vaes import diffusers_vae
from torch import Tensor

from benchmarks.pretended_gpu import PretendedGPU, PretendedTensor
from lazydiff.auto_mask.attention_mask import AttentionSettings, attention_mask
from lazydiff.auto_mask.difference_mask import DifferenceSettings, prompt_difference_mask
from lazydiff.cache.kv_cache import KVCache, KVSettings
from lazydiff.cache.module_skip import Gates, SkipCalibrator, SkipTable
from lazydiff.data.batch import collate
from lazydiff.data.stream import SceneExamples
from lazydiff.evaluation.evaluate import answer
from lazydiff.evaluation.laboratory import SMALL
from lazydiff.evaluation.questions import ordinary_questions
from lazydiff.evaluation.regenerate import encode_everything, regenerate, sample_dense
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import Sampling
from lazydiff.model.latent_space import DiffusersVAE
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.canvas import Canvas, edit_canvas, encode_canvas, open_canvas
from lazydiff.pipeline.decode import decode, to_latents
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import SampleSettings, sample
from lazydiff.sampling.samplers import SAMPLERS, make_sampler
from lazydiff.training.config import TrainingConfig
from lazydiff.training.objective import Objective
from lazydiff.training.pictures import Gallery, sample_grid
from lazydiff.vae import lazy_vae
from lazydiff.vae.canvas_vae import LazyVAE, WholeVAE


def equal(there: Tensor, here: Tensor) -> None:
    """The pretended GPU computes as the CPU does, so that results differ by nothing."""
    assert isinstance(there, PretendedTensor)
    assert torch.equal(there.cpu(), here)


def test_an_edit_from_pictures_anywhere(gpu: PretendedGPU, small: LazyDiffusion) -> None:
    image, mask, prompt = scene(3)
    given = prompt, [1, 2], SampleSettings(Sampling("ancestral", 3))
    expected = edit(small, image, mask, *given)
    model = load_checkpoint(SMALL, device="cuda")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    ours = edit(model, image, mask, *given)
    assert not isinstance(ours, PretendedTensor) and torch.equal(ours, expected)
    assert torch.equal(ours * (mask == 0), image.expand_as(ours) * (mask == 0))
    equal(edit(model, image.to("cuda"), mask, *given), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_any_number_type(gpu: PretendedGPU, model: LazyDiffusion, dtype: torch.dtype) -> None:
    """Outside the mask they stay as they are."""
    image, mask, prompt = scene(3)
    image = image.to(dtype) / 3  # which no other type has
    edited = edit(deepcopy(model).to("cuda"), image, mask, prompt)
    assert edited.dtype == dtype
    assert torch.equal(edited[(mask == 0).expand_as(edited)], image[(mask == 0).expand_as(image)])


@pytest.mark.parametrize(("sampler", "sketched"), [*((sampler, False) for sampler in SAMPLERS), ("ancestral", True)])
def test_samplers_and_sketches(gpu: PretendedGPU, model: LazyDiffusion, sampler: str, sketched: bool) -> None:
    image, mask, prompt = scene(3)
    sampling = replace(model.config.sampling, sampler=sampler, steps=3, guidance=2.0)
    settings = SampleSettings(sampling, "blue", image.flip(-1) if sketched else None)
    expected = edit(model, image, mask, prompt, [1], settings)
    assert torch.equal(edit(deepcopy(model).to("cuda"), image, mask, prompt, [1], settings), expected)


@pytest.mark.parametrize("policy", ["table", "gates", "calibrator"])
def test_skip_policies(gpu: PretendedGPU, model: LazyDiffusion, policy: str) -> None:
    image, mask, prompt = scene(3)
    sampling = replace(model.config.sampling, sampler="euler", steps=4)
    sigmas, modules = make_sampler(sampling)[1], 2 * model.config.network.decoder_depth

    def skip() -> SkipTable | Gates | SkipCalibrator:
        if policy == "table":
            return SkipTable(sigmas, torch.arange(4 * modules).view(4, modules) % 3 == 1)
        if policy == "calibrator":
            return SkipCalibrator(sigmas, modules)
        torch.manual_seed(0)
        weights = torch.randn(4, modules, model.config.network.width) / 1000
        return Gates(sigmas, "", weights, torch.ones(4, modules), {})

    here, there = skip(), skip()
    expected = edit(model, image, mask, prompt, [1], SampleSettings(sampling, skip=here))
    ours = edit(deepcopy(model).to("cuda"), image, mask, prompt, [1], SampleSettings(sampling, skip=there))
    assert torch.equal(ours, expected) and here.ratio == there.ratio


def test_packed_rows_and_contexts_from_anywhere(gpu: PretendedGPU, model: LazyDiffusion) -> None:
    """Two canvases with holes of different sizes; the context was made before the model was moved."""
    image, mask = (torch.cat(each) for each in zip(scene(1)[:2], scene(2)[:2], strict=True))
    context, prompts = encode(model, image, mask), ["a red tree", "a boat"]
    expected = sample(model, context, prompts, [1, 2])
    moved = deepcopy(model).to("cuda")
    for made in (context, encode(moved, image, mask)):
        tokens = sample(moved, made, prompts, [1, 2])
        equal(tokens, expected)
        equal(decode(moved, made, tokens), decode(model, context, expected))


@pytest.mark.parametrize("anchors", [None, 2, 0], ids=["none", "fixed", "automatic"])
def test_dense_models_with_kept_keys(gpu: PretendedGPU, dense_model: LazyDiffusion, anchors: int | None) -> None:
    image, mask, prompt = scene(3)
    sampling = replace(dense_model.config.sampling, steps=4)

    def tokens(model: LazyDiffusion) -> Tensor:
        context = encode_everything(model, image, mask)
        cache = None if anchors is None else KVCache(KVSettings(anchors))
        return sample_dense(model, context, [prompt], [1], sampling, cache)

    equal(tokens(deepcopy(dense_model).to("cuda")), tokens(dense_model))


def test_baselines(gpu: PretendedGPU, crop_model: LazyDiffusion, dense_model: LazyDiffusion) -> None:
    image, mask, prompt = scene(3)
    for model in (crop_model, dense_model):
        given = image, mask, [prompt], [1], replace(model.config.sampling, steps=2), model is crop_model
        equal(regenerate(deepcopy(model).to("cuda"), *given), regenerate(model, *given))


@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_canvas_and_its_edits(gpu: PretendedGPU, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazily, on a device: samples and masks from the CPU, the state stays where the VAE is."""
    monkeypatch.setattr(lazy_vae, "LAUNCH", 0)  # as if its kernels were large
    vae, image = diffusers_vae(), torch.rand(1, 3, 128, 128)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:60, 32:64] = 1
    samples = torch.randn(1, 4, 16, 16)

    def edited(vae: LazyVAE, image: Tensor) -> Canvas:
        canvas = open_canvas(vae, image)
        return edit_canvas(edit_canvas(canvas, samples, mask), samples + 1, mask)

    expected = edited(LazyVAE(vae), image)
    ours = edited(LazyVAE(deepcopy(vae).to("cuda")), image.to(home))
    assert ours.image.device.type == home and torch.equal(ours.image.cpu(), expected.image)
    states = [each.state for each in (*ours.encoded, *ours.decoded)]
    assert states and all(x.device.type == "cuda" for state in states for x in (state.output, *state.keys))


def test_contexts_of_a_canvas(gpu: PretendedGPU, model: LazyDiffusion) -> None:
    image, mask, prompt = scene(3)
    moved = deepcopy(model).to("cuda")
    expected = encode_canvas(model, open_canvas(WholeVAE(model.latent), image), mask)
    ours = encode_canvas(moved, open_canvas(WholeVAE(moved.latent), image), mask)
    equal(ours.tokens, expected.tokens)
    tokens = sample(moved, ours, [prompt], [1])
    canvas = edit_canvas(open_canvas(WholeVAE(moved.latent), image), to_latents(ours, tokens), mask)
    assert torch.equal(canvas.image * (mask == 0), image * (mask == 0))


@pytest.mark.parametrize(
    "find",
    [
        lambda model, image: attention_mask(model, image, "a red tree", settings=AttentionSettings([1], steps=2)),
        lambda model, image: attention_mask(
            model, image, "a red tree", "tree", AttentionSettings([1], reference="difference")
        ),
        lambda model, image: prompt_difference_mask(
            model, image, "a red tree", "a boat", DifferenceSettings([1], first=2)
        ),
        lambda model, image: prompt_difference_mask(
            model, image, "a red tree", "a blue tree", DifferenceSettings([1], stabilise=True)
        ),
    ],
    ids=["attention", "pointed at", "difference", "stabilised"],
)
def test_automatic_masks(gpu: PretendedGPU, small: LazyDiffusion, find: Callable) -> None:
    image = scene(3)[0]
    expected, ours = find(small, image), find(deepcopy(small).to("cuda"), image)
    assert torch.equal(ours.heat, expected.heat) and torch.equal(ours.mask, expected.mask)
    equal(find(deepcopy(small).to("cuda"), image.to("cuda")).heat, expected.heat)


def test_a_public_vae(gpu: PretendedGPU) -> None:
    vae, image = DiffusersVAE(diffusers_vae()), torch.rand(1, 3, 64, 64)
    moved = deepcopy(vae).to("cuda")
    equal(moved.decode(moved.encode(image.to("cuda"))), vae.decode(vae.encode(image)))


def test_evaluation(gpu: PretendedGPU, model: LazyDiffusion) -> None:
    questions, sampling = ordinary_questions(1, 3), replace(model.config.sampling, steps=2)
    ours = answer(deepcopy(model).to("cuda"), questions, sampling)
    assert (ours == answer(model, questions, sampling)).all()


def test_training(gpu: PretendedGPU, model: LazyDiffusion) -> None:
    """A step's loss, and the pictures to look at meanwhile."""
    moved = deepcopy(model).to("cuda")
    batch = collate(list(islice(SceneExamples(0).read(0, 1, 0), 2)))
    config = TrainingConfig(model=model.config)
    losses = [Objective(each, config)(batch, 0) for each in (model, moved)]
    equal(losses[1], losses[0])
    grids = [np.asarray(sample_grid(each, Gallery.of_scenes(1, 1))) for each in (model, moved)]
    assert (grids[0] == grids[1]).all()
