"""The paper's baselines, which compute every token: RegenerateImage of the whole canvas, RegenerateCrop of a square.

RegenerateImage can also go through a KV cache, as stock transformers do in ComfyUI: what it knows of the visible tokens
is recorded before the sampling, or at anchor steps, and the other steps compute the hole and its ring alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..cache.kv_cache import AnchorSession, CacheReader, CacheWriter, KVCache, dilate, probe_places
from ..cache.recording import RecordingCache, RecordingSession, recorded_noise, visible_tokens
from ..core.tokens import HoleTokens, patchify
from ..model.config import Sampling
from ..model.context import LazyContext
from ..model.layers import KVHook
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.decode import composite, decode
from ..pipeline.fit import Fit, crop_all, paste_all
from ..sampling.denoiser import of_network
from ..sampling.flow import Network
from ..sampling.guidance import branches
from ..sampling.noise import CanvasNoise
from ..sampling.samplers import Denoiser, begin, make_sampler

BRANCHES = ("conditional", "unconditional")  # by which a cache knows prompts: those of other words serve as well


@torch.no_grad()
def regenerate(
    model: LazyDiffusion, image: Tensor, mask: Tensor, prompts: Sequence[str], seeds: Sequence[int],
    sampling: Sampling | None = None, crop: bool = False,
) -> Tensor:  # fmt: skip
    """What a baseline makes of canvases [B, 3, H, W] in 0…1 and masks [B, 1, H, W], before blending: [B, 3, H, W].

    crop: it sees the square around each hole alone (paper, section 4.1)
    """
    image, mask = image.to(model.device), mask.to(model.device)
    if not crop:
        context = encode_everything(model, image, mask)
        return decode(model, context, sample_dense(model, context, prompts, seeds, sampling))
    context = encode_everything(model, *crop_all(image, mask, model.config.network.canvas))
    return paste_all(decode(model, context, sample_dense(model, context, prompts, seeds, sampling)), image, mask)


def paint_baseline(
    model: LazyDiffusion, image: Tensor, mask: Tensor, prompt: str, seed: int, crop: bool = False
) -> Tensor:
    """One canvas of any size regenerated and blended."""
    if crop:
        return composite(image, regenerate(model, image, mask, [prompt], [seed], crop=True), mask)
    fit = Fit.of(mask, model.config.network.canvas)
    made = fit.from_model(regenerate(model, *fit.to_model(image, mask), [prompt], [seed]), image)
    return composite(image, made, mask)


@torch.no_grad()
def encode_everything(model: LazyDiffusion, image: Tensor, mask: Tensor) -> LazyContext:
    """A context whose tokens are those of the whole canvas, [B, N, width]: each knows what it covers, no more."""
    network, image, mask = model.config.network, image.to(model.device).float() * 2 - 1, mask.to(model.device)
    hole = HoleTokens.from_mask(mask, network.token)
    everything = HoleTokens.everything(len(mask), hole.grid, mask.device)
    tokens = model.context(image, mask, everything)
    canvas = patchify(model.latent.encode(image), network.patch)
    return LazyContext(model.fingerprint, hole, tokens, canvas, mask > 0, network)


@torch.no_grad()
def sample_dense(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    cache: KVCache | RecordingCache | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Clean hole tokens [S, n, C·p·p] by a model that computes every token.

    cache: what was and will be kept of the visible tokens of this very context; without it every step computes all
    visible: noise [1 or S, N, C·p·p] on visible tokens, instead of the first that each seed draws for their places
    """
    sampling, context = sampling or model.config.sampling, context.to(model.device)
    sampler, sigmas = make_sampler(sampling)
    noise = CanvasNoise(seeds, context.hole.tile(len(seeds) // len(context.tokens)), context.canvas.shape[-1])
    session = None if cache is None else cache.session(sigmas)
    denoise = dense_denoiser(model, context, prompts, seeds, sampling.guidance, session, visible)
    tokens = sampler(denoise, begin(noise.next(), sigmas[0]), sigmas, noise.next)
    if session is not None:
        session.finish()
    return tokens


def dense_denoiser(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    session: AnchorSession | RecordingSession | None = None,
    visible_noise: Tensor | None = None,
) -> Denoiser:
    """Every token, or with a session the hole and its ring where it can. The visible ones are known at every noise
    level: the canvas's own, with `visible_noise` or else the first noise that their seed draws for their places."""
    context = context.to(model.device)
    text = model.prompt([*prompts, *[""] * (len(prompts) * (branches(guidance) - 1))])
    rows, grid, device = len(seeds), context.hole.grid, context.canvas.device
    times = rows // len(context.tokens)
    hole, canvas = context.hole.tile(times), context.canvas.repeat(times, 1, 1)
    context_tokens = context.tokens.repeat(times * branches(guidance), 1, 1)
    everything = HoleTokens.everything(rows, grid, device)
    noise = CanvasNoise(seeds, everything, canvas.shape[-1]).next() if visible_noise is None else visible_noise
    some = everything if session is None else dilate(context.hole, session.settings.ring).tile(rows)
    kept = (~torch.isin(everything.index[0], some.index[0])).nonzero()[:, 0]
    watched, visible = probe_places(context.hole, some), visible_tokens(context.hole).tile(rows)
    names = [(branch, *prompts) for branch in BRANCHES[: branches(guidance)]]

    def network(computed: HoleTokens, kv_hook: KVHook | None) -> Network:
        computed = computed.tile(branches(guidance))
        tokens = computed.gather(context_tokens).to(model.precision)
        return lambda x, t: model.decoder(x.to(model.precision), t, text, computed, tokens, kv_hook).float()

    def record_visible(session: RecordingSession, sigma: float) -> None:
        """Level after level: so small a network gains nothing from a batch of them."""
        for level in session.missing(sigma, names[-1]):
            writer = session.record([level], names)
            tokens = (1 - level) * canvas + level * recorded_noise(canvas.shape).to(device)
            hook = partial(record, writer, torch.searchsorted(visible.index[0], kept), watched[:0])
            of_network(model, network(visible, hook), guidance).predict(visible.gather(tokens), level)
            writer.end()

    def predict(z: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
        tokens = hole.scatter(z, (1 - sigma) * canvas + sigma * noise)
        if isinstance(session, RecordingSession):
            record_visible(session, sigma)
            action: CacheReader | CacheWriter | None = session.call(sigma, names)
        else:
            action = None if session is None else session.call(sigma, BRANCHES[: branches(guidance)])
        computed, kv_hook = everything, None
        if isinstance(action, CacheWriter):
            kv_hook = partial(record, action, kept, some.index[0, watched])
        elif isinstance(action, CacheReader):
            computed, kv_hook = some, partial(action, probes=watched)
        bound = of_network(model, network(computed, kv_hook), guidance)
        clean, variance = bound.predict(computed.gather(tokens), sigma)
        if action is not None:
            action.end()

        def at_hole(x: Tensor) -> Tensor:
            return hole.gather(computed.scatter(x, tokens))

        return at_hole(clean), None if variance is None else at_hole(variance)

    return Denoiser(predict)


def record(action: CacheWriter, kept: Tensor, probes: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder's hook that only watches."""
    action(k, v, kept, probes)
    return k, v
