"""The diffusion transformers of the host that a KV context makes lazy: where their blocks and tokens are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from comfy.ldm.hydit.attn_layers import apply_rotary_emb
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

# Which tokens one attention call of a block sees: the text's and then the image's, or the image's alone.
Sequence = Literal["joint", "image"]
# Keys and values in, keys and values out; see `KVCall.extend`.
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class BlockList(NamedTuple):
    """A list of blocks that are called alike."""

    blocks: str  # attribute of the network
    order: tuple[str, ...]  # names of a block's first arguments
    image: str  # which of them holds the image tokens
    text: str | None = None  # and the text tokens, in models that have a stream of their own for them
    joint: bool = False  # whether the image argument holds the text tokens too, before the image's
    returns: tuple[str, ...] = ()  # the arguments that a block with two streams gives back, in their order
    positions: str | None = None
    ranges: str | None = None  # the argument that says which tokens have which time step
    attentions: tuple[Sequence, ...] = ("joint",)  # a block's self-attentions in order; calls after them are cross-
    # For attention modules that are not told the call's options: the module's name, and what it does.
    attention: tuple[str, Callable[..., Any]] | None = None


class Architecture(NamedTuple):
    name: str
    stages: tuple[BlockList, ...]
    output: str  # the module that takes the last block's tokens
    joint_output: bool = False  # whether it takes text tokens as well
    tail: Callable[[Any, int], int] = lambda network, tokens: 0  # padding tokens behind the image's
    width: str = "hidden_size"


def padding(network: Any, tokens: int) -> int:
    """Z-Image fills its image tokens up."""
    return -tokens % (getattr(network, "pad_tokens_multiple", None) or 1)


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


FLUX = (
    BlockList(
        "double_blocks", (), "img", text="txt", returns=("img", "txt"), positions="pe", ranges="modulation_dims_img",
    ),
    BlockList("single_blocks", ("x",), "x", joint=True, positions="pe", ranges="modulation_dims"),
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
    "QwenImageTransformer2DModel": Architecture(
        "Qwen-Image",
        (
            BlockList(
                "transformer_blocks", (), "hidden_states", text="encoder_hidden_states",
                returns=("encoder_hidden_states", "hidden_states"), positions="image_rotary_emb",
            ),
        ),
        "proj_out",
        width="inner_dim",
    ),
    "NextDiT": Architecture(
        "Lumina 2",
        (BlockList("layers", ("x", "x_mask", "freqs_cis"), "x", joint=True, positions="freqs_cis"),),
        "final_layer",
        joint_output=True,
        tail=padding,
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
        (BlockList("blocks", ("x",), "x", positions="freqs", attentions=("image",)),),
        "head",
        width="dim",
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
                "blocks", ("x", "c", "text_states", "freq_cis_img"), "x", positions="freq_cis_img",
                attentions=("image",), attention=("attn1", hunyuan_attention),
            ),
        ),
        "final_layer",
    ),
}  # fmt: skip
