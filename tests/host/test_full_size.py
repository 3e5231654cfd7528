"""A checkpoint of PixArt-α's shape, without a description of its own, through the host's Load Diffusion Model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lazydiff.core.tokens import HoleTokens, patchify, unpatchify
from lazydiff.model.config import PRESETS
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder
from lazydiff.sampling.samplers import iddpm_denoiser

from .in_process import Pack
from .test_kv_nodes import sampled
from .tiny_models import TinyVAE

pytestmark = pytest.mark.host

# As published, only narrow and shallow.
TINY = replace(PRESETS["pixart-1024"], width=96, decoder_depth=2, encoder_depth=2, text_width=24)
SIZE = 32  # of the latent, 256 px
SD_SCALE = 0.18215


@pytest.fixture(scope="module")
def networks() -> tuple[ContextEncoder, LazyDecoder]:
    torch.manual_seed(0)
    encoder, decoder = ContextEncoder(TINY), LazyDecoder(TINY)
    for network in (encoder, decoder):
        network.initialise()
        network.eval().requires_grad_(False)
    torch.nn.init.normal_(decoder.final_layer.linear.weight, std=0.02)
    return encoder, decoder


@pytest.fixture(scope="module")
def model(pack: Pack, networks: tuple[ContextEncoder, LazyDecoder], tmp_path_factory: pytest.TempPathFactory) -> Any:
    import folder_paths

    encoder, decoder = networks
    folder: Path = tmp_path_factory.mktemp("diffusion_models")
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    tensors |= {f"model.diffusion_model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "tiny-pixart.safetensors")
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    return pack.call("UNETLoader", "tiny-pixart.safetensors", "default")[0]


def test_shapes_tell_the_sizes(model: Any) -> None:
    assert asdict(model.model.network) == asdict(TINY)
    assert model.model.model_type.name == "EPS" and model.model.latent_format.scale_factor == SD_SCALE


def prompts(*lengths: int) -> list[list[Any]]:
    return [[[torch.randn(1, length, TINY.text_width), {}]] for length in lengths]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddpm"])
def test_visible_latent_is_bit_identical(pack: Pack, model: Any, sampler: str) -> None:
    """Though the sampler sees it scaled, and the token grid is coarser than the mask."""
    latent, mask = torch.randn(2, 4, SIZE, SIZE), torch.zeros(1, 8 * SIZE, 8 * SIZE)
    mask[:, 40:120, 64:130] = 1
    (masked,) = pack.call("SetLatentNoiseMask", {"samples": latent}, mask)
    (out,) = pack.call("KSampler", model, 1, 3, 4.5, sampler, "normal", *prompts(7, 30), masked, 1.0)
    changed = (out["samples"] != latent).any(1)
    assert changed[:, 6:14, 9:15].all() and torch.isfinite(out["samples"]).all()
    assert not changed[:, :5].any() and not changed[:, 15:].any() and not changed[:, :, :8].any()


@pytest.mark.parametrize("node", ["LazySample", "KSampler"])
def test_only_cells_that_the_mask_touches_change(pack: Pack, model: Any, node: str) -> None:
    """The paper's equation 5 at the latent's resolution: of a token's four cells, two."""
    side = model.model.network.canvas
    image, mask = torch.rand(1, side, side, 3), torch.zeros(1, side, side)
    mask[:, 101:104, 150:153] = 1
    context, latent = pack.call("LazyContextEncode", model, TinyVAE(4), image, mask, 0, 0)
    out = sampled(pack, node, model, context, latent, *prompts(7, 30))
    assert context.hole.count == 1 and latent["noise_mask"].sum() == 4
    changed = (out != latent["samples"]).any(1)[0].nonzero()
    assert changed.tolist() == [[12, 18], [12, 19]]


def test_a_sketch_beside_the_mask_changes_nothing(pack: Pack, model: Any) -> None:
    """Of a token that the mask touches, only the cells that it touches."""
    side = model.model.network.canvas
    image, mask = torch.rand(1, side, side, 3), torch.zeros(1, side, side)
    mask[:, 101:104, 150:153] = 1
    context, latent = pack.call("LazyContextEncode", model, TinyVAE(4), image, mask, 0, 0)
    args = model, context, *prompts(7, 30), 1, 2, 1.0, "euler", "simple", 0.5, 2
    (out,) = pack.call("LazySample", *args, sketch=1 - image)
    changed = (out["samples"] != latent["samples"]).any(1)
    assert len(changed) == 2 and all(row.nonzero().tolist() == [[12, 18], [12, 19]] for row in changed)


def test_one_step_equals_the_librarys(
    pack: Pack, model: Any, networks: tuple[ContextEncoder, LazyDecoder]
) -> None:
    """From the highest noise level straight to the estimate of the clean latent. The levels are near 157, so that fp32
    leaves about 1e-5 of that."""
    import comfy.sample

    encoder, decoder = networks
    latent, cells = torch.randn(1, 4, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    cells[..., 8:20, 6:16] = 1
    positive, negative = prompts(9, 4)
    noised = {"samples": latent, "noise_mask": cells}
    (out,) = pack.call("KSampler", model, 3, 1, 1.0, "euler", "normal", positive, negative, noised, 1.0)

    grey = torch.tensor(pack.part("nodes.host.settings").SD_GREY)[None, :, None, None]
    hole = HoleTokens.from_grid_mask(cells[:, 0, ::2, ::2] > 0)
    pixels = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
    context = encoder(torch.where(cells > 0, grey, latent * SD_SCALE), pixels, hole)
    text = decoder.text_keys(positive[0][0])
    sigma = float(model.get_model_object("model_sampling").sigma_max)
    noise = comfy.sample.prepare_noise(latent, 3)
    z = hole.gather(patchify(noise * (1 + sigma**2) ** 0.5 + latent * SD_SCALE, 2))
    denoise = iddpm_denoiser(lambda x, t: decoder(x, t, text, hole, context))
    clean = denoise(z / (1 + sigma), sigma / (1 + sigma))
    expected = unpatchify(hole.scatter(clean, patchify(latent * SD_SCALE, 2)), hole.grid, 2) / SD_SCALE
    assert torch.allclose(out["samples"], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
