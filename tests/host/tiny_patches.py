"""The host's ControlNets and patches of tokens with next to no width and random weights, as its own nodes put them
on tiny models."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from .tiny_models import TINY, Edit, TinyVAE, accepted, randomise, tiny


def model_patch(network: torch.nn.Module) -> Any:
    """A MODEL_PATCH."""
    from comfy.model_patcher import ModelPatcher

    randomise(network)
    return ModelPatcher(network.eval(), torch.device("cpu"), torch.device("cpu"))


def picture(seed: int = 3, height: int = 256, width: int = 320) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def node(edit: Edit, file: str, name: str) -> str:
    """The id of a node of the host's, if this release has it."""
    host = edit.pack.host
    asyncio.run(host.load_custom_node(str(Path(host.__file__).parent / "comfy_extras" / file)))
    if name not in host.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this release of ComfyUI has no {name}")
    return name


def diffsynth(edit: Edit, inpaint: bool = False, size: tuple[int, int] = (256, 320)) -> Any:
    import comfy.ops

    name = node(edit, "nodes_model_patch.py", "QwenImageDiffsynthControlnet")
    kind = edit.pack.host.NODE_CLASS_MAPPINGS[name].diffsynth_controlnet.__globals__["QwenImageBlockWiseControlNet"]
    patch = model_patch(kind(3, 64, 4 if inpaint else 0, 32, operations=comfy.ops.manual_cast))
    mask = {"mask": edit.mask[:, 0]} if inpaint else {}
    vae = TinyVAE(16, frames=True)
    return edit.pack.call(name, edit.model, patch, vae, image=picture(3, *size), strength=0.7, **mask)[0]


def z_image_fun(edit: Edit, layers: int, inpaint: bool = False, **more: Any) -> Any:
    import comfy.ldm.lumina.controlnet
    import comfy.ops

    name = node(edit, "nodes_model_patch.py", "ZImageFunControlnet" if inpaint else "QwenImageDiffsynthControlnet")
    sizes = {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 8, "n_control_layers": layers}
    more |= {"additional_in_dim": 17} if inpaint else {}
    kind = comfy.ldm.lumina.controlnet.ZImage_Control
    patch = model_patch(kind(**sizes, **more, operations=comfy.ops.manual_cast, dtype=torch.float32))
    told = {"inpaint_image": picture(4), "mask": edit.mask[:, 0]} if inpaint else {}
    return edit.pack.call(name, edit.model, patch, TinyVAE(16), image=picture(), strength=0.7, **told)[0]


def lllite(edit: Edit, inpaint: bool = False, **more: Any) -> Any:
    import comfy.ops

    name = node(edit, "nodes_model_patch.py", "AnimaLLLiteApply")
    import comfy.ldm.anima.lllite

    parts = "self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1"
    shapes = {
        "lllite_conditioning1.conv1.weight": (8, 4 if inpaint else 3, 4, 4),
        "lllite_conditioning1.conv3.weight": (16, 8, 4, 4), "lllite_conditioning1.proj.weight": (6, 16, 1, 1),
        "lllite_conditioning1.resblocks.0.conv1.weight": (16, 16, 3, 3), "lllite_conditioning1.aspp.weight": (1,),
    }  # fmt: skip
    for module in (f"lllite_dit_blocks_{i}_{part}" for i in range(2) for part in parts):
        shapes |= {f"{module}.down.weight": (5, 32), f"{module}.cond_to_film.weight": (10, 6)}
    state = {key: torch.empty(shape) for key, shape in shapes.items()}
    network = comfy.ldm.anima.lllite.AnimaLLLite(state, {}, operations=comfy.ops.manual_cast)
    told = {"mask": edit.mask[:, 0]} if inpaint else {}
    return edit.pack.call(name, edit.model, model_patch(network), picture(), 0.7, 0.0, 1.0, **told)[0]


def uso(edit: Edit) -> Any:
    import comfy.ops

    name = node(edit, "nodes_model_patch.py", "USOStyleReference")
    kind = edit.pack.host.NODE_CLASS_MAPPINGS[name].apply_patch.__globals__["SigLIPMultiFeatProjModel"]
    network = kind(11, 2, 12, 32, operations=comfy.ops.manual_cast)
    states = torch.randn(1, 21, 11, 12, generator=torch.Generator().manual_seed(3))

    class Seen:
        all_hidden_states, penultimate_hidden_states = states, states[:, -2]

    return edit.pack.call(name, edit.model, model_patch(network), Seen)[0]


# Of the real one's 30 blocks, a control network of ten layers joins every third; of these, 0 and 3.
Z_IMAGE = {"n_layers": 4, "n_refiner_layers": 2}
INPAINT = {"inpaint": True, "refiner_control": True, "layers": 10}
# name: of the tiny model, sizes of it, and what puts the patch on it
PATCHED: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "Qwen-Image DiffSynth": ("qwen-image", {}, diffsynth, {}),
    "Qwen-Image DiffSynth inpaint, a picture of another size": (
        "qwen-image", {}, diffsynth, {"inpaint": True, "size": (320, 256)},
    ),
    "Z-Image Fun": ("z-image", Z_IMAGE, z_image_fun, {"layers": 10}),
    "Z-Image Fun inpaint": ("z-image", Z_IMAGE, z_image_fun, INPAINT),
    "Z-Image Fun 2.1, first release": ("z-image", Z_IMAGE, z_image_fun, {**INPAINT, "broken": True}),
    "Anima LLLite": ("anima", {}, lllite, {}),
    "Anima LLLite inpaint": ("anima", {}, lllite, {"inpaint": True}),
    "USO": ("flux", {}, uso, {}),
}  # fmt: skip


def patched(pack: Any, name: str) -> tuple[Edit, Any]:
    """An edit of two pictures, and its MODEL with a patch."""
    model, sizes, put, how = PATCHED[name]
    edit = Edit(pack, model, model=tiny(model, **sizes), rows=1 if name == "USO" else 2)  # the host's USO is of one
    return edit, put(edit, **how)


CONTROLNETS = ["flux", "sd3", "qwen-image", "qwen-image-fun"]


def controlnet(name: str) -> Any:
    """The host's own ControlNet for the architecture."""
    import comfy.cldm.mmdit
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ldm.qwen_image.controlnet as qwen
    import comfy.ops

    extra, wrapper = ["y", "guidance"] if name == "flux" else ["y"], comfy.controlnet.ControlNet
    sizes = accepted(*TINY[name.removesuffix("-fun")][:2])
    if name == "flux":
        network, more = comfy.ldm.flux.controlnet.ControlNetFlux, {"latent_input": True}
    elif name == "sd3":
        network, more = comfy.cldm.mmdit.ControlNet, {"control_latent_channels": 16, "num_blocks": 1}
    elif name == "qwen-image":
        network, more = qwen.QwenImageControlNetModel, {}
    else:
        if not hasattr(qwen, "QwenImageFunControlNetModel"):
            pytest.skip("this release of ComfyUI has no Qwen-Image Fun ControlNet")
        network, wrapper = qwen.QwenImageFunControlNetModel, comfy.controlnet.QwenFunControlNet
        sizes = {"inner_dim": 32, "num_attention_heads": 2, "attention_head_dim": 16}
        more = {"num_control_blocks": 2, "main_model_double": 3, "injection_layers": (0, 2)}
    net = network(**{**sizes, **more}, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    randomise(net)
    return wrapper(net.eval(), compression_ratio=1, load_device=torch.device("cpu"), extra_conds=extra)
