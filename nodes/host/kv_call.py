"""One call of a stock diffusion transformer in which some tokens are left out, or the others' keys and values kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ...lazydiff.cache.kv_cache import CacheFull, CacheReader, CacheWriter, KVSettings, dilate, probe_places
from ...lazydiff.core.tokens import HoleTokens
from .architectures import Architecture, BlockList

ANCHOR = "lazydiffusion_anchor"  # in a call's options: whether it computes every token, or some; absent: no context


class Dense(Exception):
    """This call of the model cannot be lazy; the message says why."""


class Places(NamedTuple):
    """Places in one sequence of tokens, of those to compute and of those to keep."""

    computed: Tensor
    kept: Tensor


class Layout:
    """Which tokens are computed, in every sequence that a network makes of them."""

    def __init__(self, hole: HoleTokens, settings: KVSettings, device: torch.device):
        hole = hole.to(device)
        computed = dilate(hole, settings.ring)
        self.total, self.image = hole.total, computed.index[0]
        self.everything = computed.count == hole.total
        self.keep_text = settings.text
        self.probes = probe_places(hole, computed)
        self.places: dict[tuple[int, int], Places] = {}

    def text(self, tokens: int) -> int:
        """How many of the text tokens are computed: all, or a single one, because blocks cannot do without any."""
        return min(tokens, 1) if self.keep_text else tokens

    def of(self, text: int, image: int) -> Places:
        """In a sequence of `text` text tokens and `image` image tokens, of which the first are the canvas's."""
        if (text, image) not in self.places:
            computed = torch.cat((torch.arange(self.text(text), device=self.image.device), text + self.image))
            kept = torch.ones(text + image, dtype=torch.bool, device=computed.device)
            kept[computed] = False
            self.places[text, image] = Places(computed, kept.nonzero().flatten())
        return self.places[text, image]


class KVCall:
    """One call of the model, recording or replaying; it sees the blocks' arguments in the order of the calls."""

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
        self.seen = False
        self.attentions: list[str] = []  # those that the block in progress has still to make
        self.positions: dict[int, tuple[Any, Any]] = {}
        self.problem = ""  # why nothing can be kept of this call

    def block(self, forward: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], stage: BlockList) -> Any:
        given = Arguments(stage.order, args, kwargs)
        if not self.seen:
            self.measure(stage, given)
        if isinstance(self.action, CacheReader):
            self.leave_out(stage, given)
        self.attentions = list(stage.attentions)
        self.action.block()
        try:
            return forward(*given.args, **given.kwargs)
        finally:
            self.attentions, self.seen = [], True

    def measure(self, stage: BlockList, given: Arguments) -> None:
        tokens, total = given[stage.image].shape[1], self.layout.total
        if stage.joint:
            self.image = total + self.shape.tail(self.network, total)
            self.text = tokens - self.image
        else:
            self.image = tokens
            self.text = given[stage.text].shape[1] if stage.text else 0
        if self.image < total or self.text < 0:
            self.refuse(f"it was given {tokens} tokens of the canvas's {total}")
        if self.shape.joint_output and given.kwargs.get("timestep_zero_index") is not None:
            self.refuse("its reference images are of another time step")

    def refuse(self, reason: str) -> None:
        """Nothing is kept of this call if it records; if it replays, it has to be made again with all tokens."""
        if isinstance(self.action, CacheReader):
            raise Dense(reason)
        self.problem = self.problem or reason
        self.action.entries.clear()  # the rest of the call has use for the memory

    def leave_out(self, stage: BlockList, given: Arguments) -> None:
        """Take the tokens that are not computed out of a block's arguments."""
        if not self.seen:
            places = self.layout.of(self.text, self.image).computed if stage.joint else self.layout.image
            given[stage.image] = given[stage.image].index_select(1, places)
            if stage.text:
                given[stage.text] = given[stage.text][:, : self.layout.text(self.text)]
        if stage.positions:
            given[stage.positions] = self.at_computed(given[stage.positions])
        if stage.ranges and stage.ranges in given.kwargs:  # reference tokens, of another time step, are left out
            given[stage.ranges] = [(0, given[stage.image].shape[1], 0)]

    def at_computed(self, positions: Any) -> Any:
        """The positions of the computed tokens, from those of all; they are the same in every block."""
        if id(positions) not in self.positions:
            places = self.layout.of(self.text, self.image).computed
            parts = positions if isinstance(positions, tuple) else (positions,)
            chosen = tuple(part.index_select(self.token_axis(part), places.to(part.device)) for part in parts)
            # The original is held too, so that no other tensor takes its id.
            self.positions[id(positions)] = positions, chosen if isinstance(positions, tuple) else chosen[0]
        return self.positions[id(positions)][1]

    def token_axis(self, positions: Tensor) -> int:
        for axis in (0,) if positions.ndim == 2 else (1, 2):
            if positions.shape[axis] == self.text + self.image:
                return axis
        raise Dense(f"its positions have the shape {list(positions.shape)}")

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the next self-attention of the block is to see, given its own; tokens at -2."""
        text = self.text if self.attentions.pop(0) == "joint" else 0
        if self.problem:
            return k, v
        places, probes = self.layout.of(text, self.image), self.layout.probes
        replaying = isinstance(self.action, CacheReader)
        expected = len(places.computed) if replaying else text + self.image
        if k.shape[-2] != expected:
            self.refuse(f"an attention saw {k.shape[-2]} tokens instead of {expected}")
        if isinstance(self.action, CacheReader):
            return self.action(k, v, self.layout.text(text) + probes)
        if self.problem:
            return k, v
        try:
            self.action(k, v, places.kept, text + self.layout.image[probes])
        except CacheFull as error:
            self.refuse(str(error))
        except mm.OOM_EXCEPTION:
            self.refuse("there is not enough memory for one anchor")
        return k, v

    def attention(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Stands between a block and the attention function of the host's."""
        function = self.others(function)
        q, k, v, *others = args
        if not self.attentions:
            return function(*args, **kwargs)
        if kwargs.get("mask") is not None or any(torch.is_tensor(other) for other in others):
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
        if isinstance(self.action, CacheWriter) or not self.seen:
            return forward(*args, **kwargs)
        if kwargs.get("modulation_dims") is not None:
            kwargs["modulation_dims"] = [(0, args[0].shape[1], 0)]
        answer = forward(*args, **kwargs)
        joint = self.shape.joint_output
        places = self.layout.of(self.text, self.image).computed if joint else self.layout.image
        whole = answer.new_zeros(len(answer), self.text + self.image if joint else self.layout.total, answer.shape[-1])
        return whole.index_copy_(1, places, answer)


def digest(value: Any) -> str:
    """A text that differs for what differs: tensors and ControlNets by what is in them, others by how they print."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if torch.is_tensor(value):
            found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        elif isinstance(value, ControlBase):
            network = id(getattr(value, "control_model", None))
            add([network, value.cond_hint_original, value.strength, value.timestep_percent_range])
            add(value.previous_controlnet)
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

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.kwargs:
            self.kwargs[name] = value
        else:
            self.args[self.order.index(name)] = value
