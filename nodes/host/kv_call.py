"""One call of a stock diffusion transformer in which some tokens are left out, or keys and values kept, or both."""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ...lazydiff.cache.kv_cache import CacheFull, CacheReader, CacheWriter, KVSettings, dilate, probe_places
from ...lazydiff.core.tokens import HoleTokens
from .architectures import Architecture, BlockList, Dense, Sequence

ANCHOR = "lazydiffusion_anchor"  # in a call's options: whether it computes every token, or some; absent: no context
REFERENCES = "reference_image_num_tokens"  # in the options that a network's blocks are told: tokens of each


class NoRoom(Dense):
    """There is not the memory for it."""


class Places(NamedTuple):
    """Places in one sequence of tokens."""

    computed: Tensor  # of those that a replaying call computes
    kept: Tensor  # of those whose keys and values it is handed
    visible: Tensor  # of those that a recording without the hole computes
    canvas: int  # where among the computed ones the canvas's begin


class Layout:
    """Which tokens are computed, in every sequence that a network makes of them.

    shape, network: the sequences' order; without them the text is first, and the canvas before reference images
    """

    def __init__(
        self, hole: HoleTokens, settings: KVSettings, device: torch.device, shape: Architecture | None = None,
        network: Any = None,
    ):  # fmt: skip
        hole = hole.to(device)
        computed, union = dilate(hole, settings.ring), dilate(hole, 0)
        self.total, self.grid, self.image, self.hole = hole.total, hole.grid, computed.index[0], union.index[0]
        self.hole_in_order: list[int] = self.hole.tolist()
        self.everything = computed.count == hole.total
        self.keep_text = settings.text
        self.text_last = shape is not None and shape.text_last(network)
        self.canvas_last = shape is not None and shape.references == "before"
        self.probes = probe_places(hole, computed)
        self.places: dict[tuple[int, int], Places] = {}

    def text(self, tokens: int) -> int:
        """How many of the text tokens are computed: all, or a single one, because blocks cannot do without any."""
        return min(tokens, 1) if self.keep_text else tokens

    def of(self, text: int, image: int) -> Places:
        """In a sequence of `text` text tokens and `image` image tokens, the canvas's and others."""
        if (text, image) not in self.places:
            device, few = self.image.device, self.text(text)
            words = torch.arange(few, device=device) + (image if self.text_last else 0)
            canvas = self.image + self.before(text, image)
            computed = torch.cat((canvas, words) if self.text_last else (words, canvas))
            kept, visible = torch.ones(2, text + image, dtype=torch.bool, device=device)
            kept[computed] = visible[self.hole + self.before(text, image)] = False
            others = kept.nonzero().flatten(), visible.nonzero().flatten()
            self.places[text, image] = Places(computed, *others, 0 if self.text_last else few)
        return self.places[text, image]

    def before(self, text: int, image: int) -> int:
        """How many tokens are before the canvas's."""
        return (0 if self.text_last else text) + (image - self.total if self.canvas_last else 0)

    def without_hole(self, place: int, text: int, image: int) -> int:
        """Where a place in a sequence is once the hole is left out."""
        return place - bisect_left(self.hole_in_order, place - self.before(text, image))


class KVCall:
    """One call of the model, recording or replaying; it sees the blocks' arguments in the order of the calls.

    An anchor step records and computes everything; a `VisibleCall` records and leaves the hole out.
    """

    def __init__(
        self, shape: Architecture, network: Any, layout: Layout, action: CacheWriter | CacheReader,
        options: dict[str, Any],
    ):  # fmt: skip
        self.shape, self.network, self.layout, self.action = shape, network, layout, action
        previous = options.get("optimized_attention_override")  # another pack's stays, between ours and the host's
        self.others = (lambda function: partial(previous, function)) if previous else (lambda function: function)
        recording = isinstance(action, CacheWriter)
        self.options = {**options, "optimized_attention_override": self.attention, ANCHOR: recording}
        self.text = self.image = 0  # tokens in the sequences, before any are left out
        self.width = int(operator.attrgetter(shape.width)(network))
        self.seen = self.masked = False
        self.attentions: list[Sequence] = []  # those that the block in progress has still to make
        self.latest: Any = None  # what the latest block has answered
        self.chosen: dict[tuple[int, str], tuple[Any, Any]] = {}  # of positions and masks
        self.problem = ""  # why nothing can be kept of this call

    def block(
        self, forward: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], stage: BlockList, last: bool = False
    ) -> Any:
        given = Arguments(stage.order, args, kwargs)
        if not self.seen:
            self.measure(stage, given)
        if self.some:
            self.leave_out(stage, given)
        self.masked = stage.mask is not None
        self.action.block()
        try:
            answer = self.latest = self.attending(stage.attentions, forward, *given.args, **given.kwargs)
        finally:
            self.seen = True
        if self.some and last and self.shape.output is None:  # what follows counts text tokens as they are now
            text = self.words(self.text)
            places = text + self.run(0)
            words = torch.arange(text, device=places.device)
            return self.in_place(answer, torch.cat((words, places)), text + self.layout.total)
        return answer

    def attending(self, kinds: tuple[Sequence, ...], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a module whose first attentions are self-attentions of these kinds."""
        self.attentions = list(kinds)
        try:
            return forward(*args, **kwargs)
        finally:
            self.attentions = []

    @property
    def some(self) -> bool:
        """Whether tokens are left out."""
        return isinstance(self.action, CacheReader)

    def present(self, places: Places) -> Tensor:
        """Of the places in a sequence, those that are not left out."""
        return places.computed

    def run(self, text: int) -> Tensor:
        """Places, in a sequence with so many text tokens, of those that are not left out."""
        return self.present(self.layout.of(text, self.image))

    @property
    def canvas(self) -> Tensor:
        """Places among the canvas's tokens of those that are not left out."""
        return self.present(self.layout.of(0, self.layout.total))

    def sequence(self, kind: Sequence) -> tuple[int, int]:
        """How many tokens an attention sees of the text and of the image, before any are left out."""
        return self.text if kind == "joint" else 0, self.layout.total if kind == "canvas" else self.image

    def words(self, text: int) -> int:
        """How many of the text tokens are not left out."""
        return self.layout.text(text)

    def seen_keys(self, text: int) -> Tensor:
        """Places of the tokens whose keys an attention sees, in its order."""
        places = self.layout.of(text, self.image)
        return torch.cat((places.computed, places.kept))

    def measure(self, stage: BlockList, given: Arguments) -> None:
        """How many tokens there are of the text and of the image; reference images' are the image's."""
        tokens, total = given[stage.image].flatten(1, -2).shape[1], self.layout.total
        tail, told = self.shape.tail(self.network, total), given.kwargs.get("transformer_options") or {}
        if stage.joint:
            self.image = total + tail + sum(told.get(REFERENCES, ()))
            self.text = tokens - self.image
        else:
            self.image = tokens
            self.text = given[stage.text].shape[1] if stage.text else 0
        known = self.image == total + tail or self.shape.references
        if self.image < total or self.text < 0 or not known:
            self.refuse(f"it was given {tokens} tokens of the canvas's {total}")
        if self.shape.references is None and (given.holds("timestep_zero_index") or given.holds(stage.ranges)):
            self.refuse("some of its tokens are of another time step")

    def refuse(self, reason: str) -> None:
        """Nothing is kept of this call if it records; if it replays, it has to be made again with all tokens."""
        if isinstance(self.action, CacheReader):
            raise Dense(reason)
        self.problem = self.problem or reason
        self.action.forget()  # the rest of the call has use for the memory

    def out_of_memory(self, reason: str) -> None:
        self.refuse(reason)

    def leave_out(self, stage: BlockList, given: Arguments) -> None:
        """Take the tokens that are not computed out of a block's arguments."""
        places, image = self.run(self.text if stage.joint else 0), given[stage.image]
        if not self.seen:
            few = image.flatten(1, -2).index_select(1, places)
            given[stage.image] = few.unflatten(1, (1,) * (image.ndim - 3) + (-1,))
        elif stage.joint:  # the text of this block alone comes last
            given[stage.image] = image[:, : len(places)]
        if stage.text:
            given[stage.text] = given[stage.text][:, : self.words(self.text)]
        for name, kind in zip(stage.positions, stage.attentions, strict=False):
            given[name] = self.at_computed(given[name], kind)
        if stage.mask and given.holds(stage.mask):
            given[stage.mask] = self.mask_of_computed(given[stage.mask])
        if stage.ranges and given.holds(stage.ranges):
            given[stage.ranges] = self.ranges(given[stage.ranges], self.text if stage.joint else 0)

    def ranges(self, ranges: Any, text: int) -> Any:
        """Which tokens have which time step: reference tokens, of another one, are left out.

        A place alone, where they begin, is behind all that are not.
        """
        return [(0, len(self.run(text)), 0)] if isinstance(ranges, list) else ranges

    def at_computed(self, positions: Any, kind: Sequence) -> Any:
        """The positions of the computed tokens, from those of all; they are the same in every block."""

        def choose() -> Any:
            sequence = self.sequence(kind)
            places, tokens = self.present(self.layout.of(*sequence)), sum(sequence)
            parts = positions if isinstance(positions, tuple) else (positions,)
            chosen = tuple(part.index_select(token_axis(part, tokens), places.to(part.device)) for part in parts)
            return chosen if isinstance(positions, tuple) else chosen[0]

        return self.once(positions, kind, choose)

    def mask_of_computed(self, mask: Tensor) -> Tensor:
        """An attention mask [..., queries or 1, keys] for computed tokens, and for keys in the order of `extend`."""

        def choose() -> Tensor:
            if mask.shape[-1] != self.text + self.image:
                raise Dense(f"its attention mask has the shape {list(mask.shape)}")
            chosen = mask.index_select(-1, self.seen_keys(self.text))
            return chosen if mask.shape[-2] == 1 else chosen.index_select(-2, self.run(self.text))

        return self.once(mask, "mask", choose)

    def once(self, of: Any, kind: str, choose: Callable[[], Any]) -> Any:
        """What was chosen of an argument that all blocks share."""
        if (id(of), kind) not in self.chosen:
            self.chosen[id(of), kind] = of, choose()  # held, so that no other tensor takes its id
        return self.chosen[id(of), kind][1]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the next self-attention of the block is to see, given its own; tokens at -2."""
        sequence = self.sequence(self.attentions.pop(0))
        if self.problem:
            return k, v
        places = self.layout.of(*sequence)
        probes = places.canvas + self.layout.probes
        expected = len(self.present(places)) if self.some else sum(sequence)
        if k.shape[-2] != expected:
            self.refuse(f"an attention saw {k.shape[-2]} tokens instead of {expected}")
        # Some networks repeat a key for several heads in a row, before the attention or in it.
        shared = k.shape[1] * k.shape[-1] // self.width or 1 if k.ndim == 4 else 1
        one_of_each = k[:, ::shared], v[:, ::shared]
        if isinstance(self.action, CacheReader):
            k, v = self.action(*one_of_each, probes)
            return (k, v) if shared == 1 else (k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        if self.problem:
            return k, v
        try:
            self.action(*one_of_each, self.kept(places), places.computed[probes])
        except CacheFull as error:
            self.out_of_memory(str(error))
        except mm.OOM_EXCEPTION:
            self.out_of_memory("there is not enough memory for what is to be kept")
        return k, v

    def kept(self, places: Places) -> Tensor:
        """Places, among the tokens that are not left out, of those to keep."""
        return places.kept

    def attention(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Stands between a block and the attention function of the host's."""
        function = self.others(function)
        q, k, v, *others = args
        if not self.attentions:
            return function(*args, **kwargs)
        if not self.masked and (kwargs.get("mask") is not None or any(torch.is_tensor(other) for other in others)):
            self.refuse("it uses an attention mask")
        if not kwargs.get("skip_reshape"):  # tokens at 1, heads apart or not
            k, v = k.flatten(2), v.flatten(2)
        return function(q, *self.extend(k, v), *others, **kwargs)

    def self_attention(
        self, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any], function: Callable[..., Any], module: Any
    ) -> Any:
        """In place of an attention module that is not told the call's options."""
        return function(module, self.extend, self.options, *args, **kwargs)

    def output(self, forward: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
        """The output module's answer, each token in its own place among zeros for those that were left out."""
        if not self.some or not self.seen:
            return forward(*args, **kwargs)
        text = self.text if self.shape.joint_output else 0
        if kwargs.get("modulation_dims") is not None:
            kwargs["modulation_dims"] = self.ranges(kwargs["modulation_dims"], text)
        answer, places = forward(*args, **kwargs), self.run(text)
        # Older releases of the host hand on Hunyuan's text behind the image.
        return self.in_place(answer[:, : len(places)], places, text + self.image)

    def refiner(self, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A block before those of `stages`, which is always given all image tokens."""
        return forward(*args, **kwargs)

    def in_place(self, answer: Tensor, places: Tensor, total: int) -> Tensor:
        """Each token in its own place among zeros for those that were left out; [B, n, d], or [B, 1, 1, n, d] for a
        network that has frames of rows of tokens."""
        whole = answer.new_zeros(len(answer), total, answer.shape[-1])
        whole.index_copy_(1, places, answer.flatten(1, -2))
        return whole if answer.ndim == 3 else whole.unflatten(1, (1, *self.layout.grid))


def token_axis(positions: Tensor, tokens: int) -> int:
    for axis in (0,) if positions.ndim == 2 else (1, 2):
        if positions.shape[axis] == tokens:
            return axis
    raise Dense(f"its positions have the shape {list(positions.shape)}")


def digest(value: Any) -> str:
    """A text that differs for what differs: tensors and ControlNets by what is in them, others by how they print."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if torch.is_tensor(value):
            found.update(str(value.shape).encode())
            found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        elif isinstance(value, dict):
            add(sorted(value.items()))
        elif isinstance(value, ControlBase):
            network = id(getattr(value, "control_model", None))
            add([network, value.cond_hint_original, value.strength, value.timestep_percent_range])
            add([value.extra_args.get("control_type"), value.extra_concat_orig, value.previous_controlnet])
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


class Arguments:
    """A call's arguments by name, however they were given."""

    def __init__(self, order: tuple[str, ...], args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any]):
        self.order, self.args, self.kwargs = order, list(args), dict(kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.kwargs[name] if name in self.kwargs else self.args[self.order.index(name)]

    def holds(self, name: str | None) -> bool:
        """Whether anything was given for a name."""
        known = name in self.kwargs or name in self.order[: len(self.args)]
        return name is not None and known and self[name] is not None

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.kwargs:
            self.kwargs[name] = value
        else:
            self.args[self.order.index(name)] = value
