"""The diffusion transformers of the host that a KV context makes lazy: where their blocks and tokens are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from comfy.ldm.hydit.attn_layers import apply_rotary_emb
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

# Which tokens one attention call sees: the text's and the image's, the image's alone, or of those the canvas's alone.
Sequence = Literal["joint", "image", "canvas"]
# Keys and values in, keys and values out; see `KVCall.extend`.
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Dense(Exception):
    """This call of the model cannot be lazy; the message says why."""


class BlockList(NamedTuple):
    """A list of blocks that are called alike."""

    blocks: str  # attribute of the network
    order: tuple[str, ...]  # names of a block's first arguments
    image: str  # which of them holds the image tokens
    text: str | None = None  # and the text tokens, in models that have a stream of their own for them
    joint: bool = False  # whether the image argument holds the text tokens too
    returns: tuple[str, ...] = ()  # the arguments that a block with two streams gives back, in their order
    positions: tuple[str, ...] = ()  # of the tokens that each of the self-attentions sees
    mask: str | None = None  # the argument with an attention mask of the joint sequence
    ranges: str | None = None  # the argument that says which tokens have which time step
    attentions: tuple[Sequence, ...] = ("joint",)  # a block's self-attentions in order; calls after them are cross-
    # For attention modules that are not told the call's options: the module's name, and what it does.
    attention: tuple[str, Callable[..., Any]] | None = None


class Architecture(NamedTuple):
    """A network. Its joint sequence is of the text, the canvas and the tokens of reference images behind the canvas,
    unless something else is said."""

    name: str
    stages: tuple[BlockList, ...]
    output: str | None  # the module that takes the last block's tokens; None: what takes them wants all of the canvas's
    joint_output: bool = False  # whether it takes text tokens as well
    tail: Callable[[Any, int], int] = lambda network, tokens: 0  # padding tokens behind the image's
    text_last: Callable[[Any], bool] = lambda network: False  # whether the text is behind the image
    references: Literal["behind", "before"] | None = "behind"  # None: what is beside the canvas is not known
    width: str = "hidden_size"  # of the keys, before any of their heads is repeated
    token: str | int = "patch_size"  # latent cells per side of a token
    ring: int = 0  # tokens around the hole that what follows the blocks looks at
    refiners: str | None = None  # list of blocks before the stages, in which image tokens attend to each other


def padding(network: Any, tokens: int) -> int:
    """Z-Image fills its image tokens up."""
    return -tokens % (getattr(network, "pad_tokens_multiple", None) or 1)


def flipped(network: Any) -> bool:
    """Older releases of the host put the text of Hunyuan's models behind the image."""
    return getattr(network.double_blocks[0], "flipped_img_txt", False)


def pixart_attention(module: Any, extend: Extend, options: dict[str, Any], x: Tensor, **unused: Any) -> Tensor:
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    k, v = extend(module.k_norm(k), v)
    return module.proj(optimized_attention(module.q_norm(q), k, v, module.num_heads, transformer_options=options))


def hunyuan_attention(
    module: Any, extend: Extend, options: dict[str, Any], x: Tensor, positions: Any = None
) -> tuple[Tensor]:
    qkv = module.Wqkv(x).unflatten(-1, (3, module.num_heads, module.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = module.q_norm(qkv[0]), module.k_norm(qkv[1]), qkv[2]
    if positions is not None:
        q, k = apply_rotary_emb(q, k, positions, head_first=True)
    k, v = extend(k, v)
    settings = {"skip_reshape": True, "attn_precision": module.attn_precision, "transformer_options": options}
    return (module.out_proj(optimized_attention(q, k, v, module.num_heads, **settings)),)


def ernie_attention(
    module: Any, extend: Extend, options: dict[str, Any], x: Tensor, image_rotary_emb: Tensor, **unused: Any
) -> Tensor:
    import comfy.ops
    import comfy.quant_ops  # releases without Ernie do not have it

    if "rms_rope_split_half" not in type(module).forward.__code__.co_names:
        raise Dense("this release of ComfyUI rotates its keys in another way")

    q, k = (linear(x).unflatten(-1, (module.heads, module.head_dim)) for linear in (module.to_q, module.to_k))
    q_scale, _, q_stream = comfy.ops.cast_bias_weight(module.norm_q, q, offloadable=True)
    k_scale, _, k_stream = comfy.ops.cast_bias_weight(module.norm_k, k, offloadable=True)
    q, k = comfy.quant_ops.ck.rms_rope_split_half(q, k, image_rotary_emb, q_scale, k_scale, module.norm_q.eps)
    comfy.ops.uncast_bias_weight(module.norm_q, q_scale, None, q_stream)
    comfy.ops.uncast_bias_weight(module.norm_k, k_scale, None, k_stream)
    k, v = extend(k.flatten(2), module.to_v(x))
    return module.to_out[0](optimized_attention(q.flatten(2), k, v, module.heads, transformer_options=options))


FLUX = (
    BlockList(
        "double_blocks", (), "img", text="txt", returns=("img", "txt"), positions=("pe",), mask="attn_mask",
        ranges="modulation_dims_img",
    ),
    BlockList(
        "single_blocks", ("x",), "x", joint=True, positions=("pe",), mask="attn_mask", ranges="modulation_dims",
    ),
)
QWEN = (
    BlockList(
        "transformer_blocks", (), "hidden_states", text="encoder_hidden_states",
        returns=("encoder_hidden_states", "hidden_states"), positions=("image_rotary_emb",),
        ranges="timestep_zero_index",
    ),
)  # fmt: skip
COSMOS = Architecture(
    "Cosmos-Predict2",
    (BlockList("blocks", ("x_B_T_H_W_D",), "x_B_T_H_W_D", positions=("rope_emb_L_1_1_D",), attentions=("image",)),),
    "final_layer",
    references=None,
    width="model_channels",
    token="patch_spatial",
)
# Boogu's image attends to itself once more, with positions of its own.
BOOGU = BlockList(
    "double_stream_layers", ("img_hidden_states", "instruct_hidden_states", "joint_rotary_emb", "img_rotary_emb"),
    "img_hidden_states", text="instruct_hidden_states", returns=("img_hidden_states", "instruct_hidden_states"),
    positions=("joint_rotary_emb", "img_rotary_emb"), attentions=("joint", "image"),
)  # fmt: skip
OMNIGEN = BlockList(
    "layers", ("hidden_states", "attention_mask", "image_rotary_emb"), "hidden_states", joint=True,
    positions=("image_rotary_emb",),
)  # fmt: skip

# By the name of the network's class.
ARCHITECTURES = {
    "Flux": Architecture("Flux", FLUX, "final_layer"),
    "Chroma": Architecture("Chroma", FLUX, "final_layer"),
    "OpenAISignatureMMDITWrapper": Architecture(
        "Stable Diffusion 3",
        (
            BlockList(
                "joint_blocks", ("context", "x"), "x", text="context", returns=("context", "x"),
                attentions=("joint", "image"),
            ),
        ),
        "final_layer",
    ),
    "ChromaRadiance": Architecture("Chroma Radiance", FLUX, None, references=None, ring=1),
    "HunyuanVideo": Architecture("Hunyuan", FLUX, "final_layer", text_last=flipped, references=None),
    "QwenImageTransformer2DModel": Architecture("Qwen-Image", QWEN, "proj_out", width="inner_dim"),
    "MageFlowTransformer2DModel": Architecture("Mage-Flow", QWEN, "proj_out", width="inner_dim"),
    "SingleStreamDiT": Architecture(
        "Krea 2",
        (BlockList("blocks", ("x", "vec", "freqs", "mask"), "x", joint=True, positions=("freqs",)),),
        "last",
        joint_output=True,
        width="blocks.0.attn.wk.out_features",
        token="patch",
    ),
    "Ideogram4Transformer2DModel": Architecture(
        "Ideogram 4",
        (
            BlockList(
                "layers", ("x", "attn_mask", "freqs_cis"), "x", joint=True, positions=("freqs_cis",), mask="attn_mask",
            ),
        ),
        "final_layer",
        joint_output=True,
        references=None,
        width="input_proj.out_features",
        token=1,
    ),
    "ErnieImageModel": Architecture(
        "Ernie-Image",
        (
            BlockList(
                "layers", ("x", "rotary_pos_emb"), "x", joint=True, positions=("rotary_pos_emb",),
                attention=("self_attention", ernie_attention),
            ),
        ),
        "final_linear",
        joint_output=True,
        text_last=lambda network: True,
        references=None,
    ),
    "HiDreamImageTransformer2DModel": Architecture(
        "HiDream-I1",
        (
            BlockList(
                "double_stream_blocks", (), "image_tokens", text="text_tokens",
                returns=("image_tokens", "text_tokens"), positions=("rope",),
            ),
            BlockList("single_stream_blocks", (), "image_tokens", joint=True, positions=("rope",)),
        ),
        "final_layer",
        text_last=lambda network: True,
        references=None,
        width="inner_dim",
    ),
    "OmniGen2Transformer2DModel": Architecture(
        "OmniGen2",
        (OMNIGEN,),
        "norm_out",
        joint_output=True,
        references="before",
        refiners="noise_refiner",
        width="layers.0.attn.to_k.out_features",
    ),
    "BooguTransformer2DModel": Architecture(
        "Boogu",
        (BOOGU, OMNIGEN._replace(blocks="single_stream_layers")),
        "norm_out",
        joint_output=True,
        references="before",
        refiners="noise_refiner",
        width="single_stream_layers.0.attn.to_k.out_features",
    ),
    "NextDiT": Architecture(
        "Lumina 2",
        (BlockList("layers", ("x", "x_mask", "freqs_cis"), "x", joint=True, positions=("freqs_cis",)),),
        "final_layer",
        joint_output=True,
        tail=padding,
        references=None,
        refiners="noise_refiner",
        width="dim",
    ),
    "MMDiT": Architecture(
        "AuraFlow",
        (
            BlockList("double_layers", ("c", "x"), "x", text="c", returns=("c", "x")),
            BlockList("single_layers", ("cx",), "cx", joint=True),
        ),
        "final_linear",
        width="final_linear.in_features",
    ),
    "WanModel": Architecture(
        "Wan",
        (BlockList("blocks", ("x",), "x", positions=("freqs",), attentions=("image",)),),
        "head",
        width="dim",
    ),
    "Anima": COSMOS._replace(name="Anima"),
    "MiniTrainDIT": COSMOS,
    "Kandinsky5": Architecture(
        "Kandinsky 5",
        (
            BlockList(
                "visual_transformer_blocks", ("visual_embed",), "visual_embed", positions=("freqs",),
                attentions=("image",),
            ),
        ),
        None,
        references=None,
        width="model_dim",
    ),
    "PixArtMS": Architecture(
        "PixArt",
        (BlockList("blocks", ("x",), "x", attentions=("image",), attention=("attn", pixart_attention)),),
        "final_layer",
    ),
    "HunYuanDiT": Architecture(
        "HunyuanDiT",
        (
            BlockList(
                "blocks", ("x", "c", "text_states", "freq_cis_img"), "x", positions=("freq_cis_img",),
                attentions=("image",), attention=("attn1", hunyuan_attention),
            ),
        ),
        "final_layer",
    ),
}  # fmt: skip

DOWNSCALE = {"HunyuanImage21": 32, "ChromaRadiance": 1}  # of latents that do not say so in older releases


def architecture(model: Any) -> Architecture | None:
    """How to make a MODEL lazy, or None for one that stays dense."""
    return ARCHITECTURES.get(type(model.model.diffusion_model).__name__)


def token_size(model: Any) -> int:
    """Pixels per side of a token of the MODEL's; of models that have none, of a latent cell."""
    shape = architecture(model)
    if shape is None:
        return downscale(model)
    patch = getattr(model.model.diffusion_model, shape.token) if isinstance(shape.token, str) else shape.token
    return downscale(model) * (patch if isinstance(patch, int) else patch[-1])


def downscale(model: Any) -> int:
    """Pixels per side of a latent cell."""
    form = model.model.latent_format
    return getattr(form, "spacial_downscale_ratio", None) or DOWNSCALE.get(type(form).__name__, 8)
