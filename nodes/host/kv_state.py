"""One sampling on a KV context: what was found out when it began, and why it has to compute more than the hole."""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...lazydiff.cache.kv_cache import AnchorSession, KVCache
from ...lazydiff.cache.kv_context import KVContext, cache_of
from ...lazydiff.cache.recording import RecordingSession
from .architectures import architecture
from .controlnets import conds_of, of_the_host
from .kv_call import Layout, digest
from .steps import Steps
from .token_patches import distinct, notes, unknown

# What other packs and the host's own step-skipping nodes leave in a call's options, and tokens pass through.
STEP_SKIPPING = ("easycache", "lazycache", "teacache", "magcache", "fbcache", "wavespeed")
# What else than words a conditioning may hold: it changes every token, so that anchors are of it alone.
BESIDE_WORDS = ("guidance", "concat_latent_image", "concat_mask", "reference_latents", "reference_latents_method")
WORDS = ("cross_attn", "attention_mask", "conditioning_llama3", "conditioning_byt5small")


class KVSamplingState:
    """One sampling on a KV context: what was found out when it began."""

    def __init__(self, context: KVContext, guider: Any, steps: Steps):
        patcher, self.guider, conds = guider.model_patcher, guider, conds_of(guider)
        self.context, self.cache = context, cache_of(context)
        self.layout = self.make_layout(patcher)
        self.steps: Steps = steps
        self.session: AnchorSession | RecordingSession = self.cache.session(steps.levels)
        self.patches = patcher.patches_uuid
        self.orders: dict[int, list[Any]] = defaultdict(list)  # of the prompts of each role
        names = (*BESIDE_WORDS, *WORDS) if self.layout.keep_text else BESIDE_WORDS
        nets = [cond.get("control") for cond in conds]  # the host hands on the positive prompt's to the negative one
        self.beside = {}
        if context.settings.reuse:  # within one sampling, their ids tell prompts apart
            self.beside = {cond["uuid"]: digest([[cond.get(name) for name in names], nets]) for cond in conds}
        self.hooked = {cond["uuid"] for cond in conds if cond.get("hooks")}  # that change the weights
        self.why_dense = ""
        self.told: set[str] = set()
        if not all(map(of_the_host, nets)):
            self.use_anchors("another node pack's ControlNet may answer otherwise outside of a sampling")

    def make_layout(self, patcher: Any) -> Any:
        """Which part of the canvas is computed."""
        shape, network = architecture(patcher), patcher.model.diffusion_model
        return Layout(self.context.hole, self.context.settings, patcher.load_device, shape, network)

    def use_anchors(self, reason: str) -> None:
        """Nothing can be recorded for this sampling."""
        if isinstance(self.session, RecordingSession):
            self.cache = KVCache(self.context.settings)
            self.session = self.cache.session(self.steps.levels)
            self.tell(f"some steps compute the whole canvas, because {reason}")

    def prompts(self, given: weakref.ref[Any], options: dict[str, Any]) -> list[Hashable]:
        """Which prompt each part of a batch is of: positive or negative, which of them, and what it holds beside words.

        Samplings with other words in the same places share anchors, unless text tokens are kept.
        given: as in `owner`; patches of tokens are its alone
        """
        keys: list[Hashable] = []
        others = self.patches, given if distinct(options) else None
        for role, uuid in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            known = self.orders[role]
            if uuid not in known:
                known.append(uuid)
            keys.append((*others, role, known.index(uuid), self.beside.get(uuid)))
        return keys

    def can_be_lazy(self, x: Tensor, known: Tensor, options: dict[str, Any]) -> bool:
        if self.why_dense or self.layout.everything or self.session.dense:
            return False
        if x.shape[1:] != known.shape[1:]:
            self.tell("a part of the canvas is computed whole, because Conditioning (Set Area) cuts it out")
            return False
        skipping = [name for name in options if any(known in str(name).lower() for known in STEP_SKIPPING)]
        if skipping:
            self.stay_dense(f"{skipping[0]} skips steps of its own")
        elif reason := self.obstacle(options):
            self.stay_dense(reason)
        else:
            for line in notes(options):
                self.tell(line)
        return not self.why_dense

    def obstacle(self, options: dict[str, Any]) -> str:
        """Why other nodes' changes to the model need all of the canvas, if they do."""
        if options.get("patches_replace", {}).get("dit"):
            return "another node replaces the model's blocks"
        places = unknown(options)
        return f"another node's patch ({places[0]}) needs all tokens" if places else ""

    def owner(self, given: weakref.ref[Any], options: dict[str, Any]) -> Hashable:
        """What recorded keys depend on beside what the model is told: its weights, and what others do to attention.

        given: the MODEL that the context was attached to
        """
        hooked = tuple(uuid for uuid in options["uuids"] if uuid in self.hooked)
        return given, self.patches, options.get("optimized_attention_override"), hooked

    def stay_dense(self, reason: str) -> None:
        """The rest of this sampling computes every token."""
        self.why_dense = reason
        self.tell(f"every step computes the whole canvas, because {reason}")

    def tell(self, line: str) -> None:
        if line not in self.told:
            logging.info("Lazy Diffusion: %s", line)
            self.told.add(line)

    def end(self, whole: bool) -> None:
        """Keep what later samplings may reuse, in main memory; of a sampling that was stopped, nothing."""
        if isinstance(self.session, AnchorSession) and (self.why_dense or not whole):
            self.session.abandon()
            return
        self.session.finish()
        home = mm.unet_offload_device()
        if isinstance(self.session, RecordingSession) and self.cache.bytes > mm.get_free_memory(home):
            self.cache.clear()  # the next sampling records it again
        self.session.to(home)
