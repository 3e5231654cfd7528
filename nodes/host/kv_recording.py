"""Recordings of a stock model: calls of it that are no steps, made before a sampling's first one.

Those of a transformer leave the hole out. A UNet's convolutions need something there: it sees noise on zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from torch import Tensor

from ...lazydiff.cache.kv_cache import MEGABYTE, CacheWriter, Level
from ...lazydiff.cache.recording import RecordingSession, recorded_noise
from .architectures import Dense
from .controlnets import chain
from .kv_call import KVCall, NoRoom, Places, digest
from .token_patches import distinct

ROOM = 1.5  # times what the host thinks that a batch needs, as it asks for itself before it makes one


class VisibleCall(KVCall):
    """A call that runs every token but the hole's, and keeps keys and values of those that sampling steps leave out."""

    refining = False  # whether a block before the stages is in progress

    @property
    def some(self) -> bool:
        return True

    def present(self, places: Places) -> Tensor:
        return places.visible

    def words(self, text: int) -> int:
        return text

    def seen_keys(self, text: int) -> Tensor:
        return self.run(text)

    def kept(self, places: Places) -> Tensor:
        return torch.searchsorted(places.visible, places.kept)

    def ranges(self, ranges: Any, text: int) -> Any:
        """Which tokens have which time step, at the places where they are without the hole."""
        if not isinstance(ranges, list):  # a place alone
            return self.layout.without_hole(ranges, text, self.image)
        end = text + self.image

        def place(given: int | None) -> int:
            return self.layout.without_hole(end if given is None else given, text, self.image)

        return [(place(first), place(last), time) for first, last, time in ranges]

    def refuse(self, reason: str) -> None:
        raise Dense(reason)

    def out_of_memory(self, reason: str) -> None:
        raise NoRoom(reason)

    def refiner(self, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """It is given all tokens, of which the visible ones must not see the hole's."""
        self.refining = True
        try:
            return forward(*args, **kwargs)
        finally:
            self.refining = False

    def attention(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not self.refining:
            return super().attention(function, *args, **kwargs)
        q, k, v, *others = args
        axis, total = (-2 if kwargs.get("skip_reshape") else 1), self.layout.total
        if k.shape[axis] not in (total, total + self.shape.tail(self.network, total)):
            raise Dense("image tokens meet others before its blocks")
        visible = self.layout.of(0, k.shape[axis]).visible

        def seen(mask: Any) -> Any:
            return mask.index_select(-1, visible) if torch.is_tensor(mask) else mask

        k, v = k.index_select(axis, visible), v.index_select(axis, visible)
        kwargs = {name: seen(value) if name == "mask" else value for name, value in kwargs.items()}
        return self.others(function)(q, k, v, *map(seen, others), **kwargs)


class ModelCall(NamedTuple):
    """What a call of the model is given; instead of a ControlNet's residuals, the ControlNet."""

    x: Tensor  # [prompts·B, …]
    t: Tensor
    concat: Any
    text: Any
    options: dict[str, Any]
    others: dict[str, Any]
    net: Any = None

    def of_prompt(self, number: int) -> ModelCall:
        """That of one of the prompts that share the batch."""
        rows = len(self.x) // len(self.options["uuids"])
        return self.at(torch.arange(number * rows, (number + 1) * rows, device=self.x.device))

    def at(self, rows: Tensor) -> ModelCall:
        """That of some rows, perhaps repeated."""

        def choose(value: Any) -> Any:
            if torch.is_tensor(value):
                return value.index_select(0, rows.to(value.device)) if len(self.x) == len(value) else value
            if isinstance(value, (list, tuple)):
                return type(value)(choose(part) for part in value)
            return value

        others = {name: choose(value) for name, value in self.others.items()}
        return self._replace(
            x=choose(self.x), t=choose(self.t), concat=choose(self.concat), text=choose(self.text), others=others
        )

    @property
    def conditions(self) -> list[Any]:
        """What it is told beside the noisy latent and its noise level."""
        return [self.concat, self.text, self.others, self.net]

    @property
    def hints(self) -> int:
        """How many pictures a ControlNet or a patch was given, of the one with most."""
        given = [each.cond_hint_original for each in chain(self.net)]
        given += [vars(patch).get(name) for patch in distinct(self.options) for name in ("image", "inpaint_image")]
        return max((len(pictures) for pictures in given if pictures is not None), default=0)


# Makes a call of the model that records.
Run = Callable[[CacheWriter, ModelCall], None]


class CanvasRecorder:
    """Records for one sampling what no sampling on its canvas has recorded before.

    model: of the host's
    canvas: [B, C, (1,) h, w], its known latent as samplers see it, 0 in the hole
    canvases: of the context, which a batch of variations repeats
    bytes: what a noise level of one canvas keeps for all of the sampling's prompts
    """

    def __init__(self, model: Any, session: RecordingSession, canvas: Tensor, canvases: int, bytes: int):
        self.model, self.session = model, session
        self.canvas, self.canvases, self.bytes = canvas, canvases, bytes
        self.names: dict[Hashable, Hashable] = {}  # of prompts, by the host's ids of them

    def __call__(self, given: ModelCall, sigma: float, owner: Hashable, run: Run) -> list[Hashable]:
        """The names of the prompts of a call of the model, all of which are recorded for its noise level.

        owner: what the keys depend on beside what the model is given
        Errors: `Dense` where nothing can be recorded, `NoRoom` where there is not the memory.
        """
        if not self.names:
            self.session.together = self.fits()
        try:
            return [self.recorded(given, i, sigma, owner, run) for i in range(len(given.options["uuids"]))]
        except NoRoom:
            if not self.session.together and not self.session.forget_other_levels(self.session.level(sigma)):
                raise
            self.session.together = False
            return self(given, sigma, owner, run)

    def recorded(self, given: ModelCall, number: int, sigma: float, owner: Hashable, run: Run) -> Hashable:
        """The name of one of the prompts, which is recorded."""
        uuid = given.options["uuids"][number]
        own = None if uuid in self.names else self.of_canvases(given.of_prompt(number))
        if own is not None:
            self.names[uuid] = owner, digest([self.canvas[: len(own.x)], own.conditions])
        name = self.names[uuid]
        if levels := self.session.missing(sigma, name):
            own = own or self.of_canvases(given.of_prompt(number))
            # What others add may be for the rows of one level, or for some of the levels.
            apart = own.net is not None or distinct(own.options)
            for batch in [[level] for level in levels] if apart else [levels]:
                self.record(own, number, batch, name, run)
        self.session.fetch(sigma, name, given.x.device)
        return name

    def of_canvases(self, own: ModelCall) -> ModelCall:
        """Of variations of the same canvases, the first of each canvas."""
        times, rows = len(own.x) // self.canvases, torch.arange(self.canvases, device=own.x.device)
        if times <= 1 or own.hints > self.canvases:
            return own
        first, repeated = own.at(rows), own.at(rows.repeat(times))
        tiled = digest([self.canvas[: self.canvases].repeat(times, *[1] * (self.canvas.ndim - 1)), repeated.conditions])
        return first if tiled == digest([self.canvas, own.conditions]) else own

    def fits(self) -> bool:
        """Whether all levels can be recorded in one batch, and kept together."""
        settings, count = self.session.settings, len(self.session.levels) * self.canvases
        if settings.limit and count * self.bytes > settings.limit * MEGABYTE:
            return False
        shape = [count, *self.canvas.shape[1:]]
        return self.model.memory_required(shape) * ROOM < mm.get_free_memory(self.canvas.device)

    def record(self, own: ModelCall, number: int, levels: list[Level], name: Hashable, run: Run) -> None:
        mm.throw_exception_if_processing_interrupted()
        writer, rows, times = self.session.record(levels, [name]), len(own.x), len(levels)
        batch = own.at(torch.arange(rows, device=own.x.device).repeat(times))
        noise = recorded_noise(self.canvas.shape).to(self.canvas).expand(rows, *self.canvas.shape[1:])
        t = torch.tensor(levels, dtype=own.t.dtype).repeat_interleave(rows).to(own.t.device)
        x = [
            self.model.scale_latent_inpaint(x=noise, sigma=sigma, noise=noise, latent_image=self.canvas[:rows])
            for sigma in t.split(rows)
        ]
        options = {**own.options, "sigmas": t}
        for told in ("cond_or_uncond", "uuids"):
            options[told] = [own.options[told][number]] * times
        try:
            run(writer, batch._replace(x=torch.cat(x).to(own.x.dtype), t=t, options=options))
        except mm.OOM_EXCEPTION as error:
            raise NoRoom("there is not enough memory to record") from error
        writer.end()
