"""IDDPM and guidance against diffusers, scipy and plainly written references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lazydiff.core.tokens import HoleTokens
from lazydiff.sampling.guidance import branches, guide
from lazydiff.sampling.iddpm import ALPHA_BARS, BETAS, discretised_gaussian_nll, iddpm_loss, posterior_table, respace
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.sampling.samplers import begin, iddpm_denoiser, sample_iddpm
from lazydiff.sampling.schedules import iddpm_sigmas

CHAINS = [4, 10, 20, 25, 50, 100, 250]


def ddpm_scheduler(steps: int) -> DDPMScheduler:
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    return scheduler


def network(x: Tensor, t: Tensor) -> Tensor:
    """What a model of pictures like tanh of x would say of the noise, with variances between and beyond the bounds."""
    alpha_bar = ALPHA_BARS[t].to(x)[:, None, None]
    epsilon = (1 - alpha_bar).sqrt() * x - 0.5 * alpha_bar.sqrt() * torch.tanh(2 * x)
    return torch.cat((epsilon, 1.5 * torch.sin(3 * x + t[:, None, None] / 300)), dim=-1)


@pytest.mark.parametrize("steps", CHAINS)
def test_time_steps_are_those_of_diffusers(steps: int) -> None:
    assert respace(steps)[::-1] == ddpm_scheduler(steps).timesteps.tolist()


def test_chain_of_one_step_starts_at_the_noise() -> None:
    assert respace(1) == [999]
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            respace(steps)


def test_full_table_is_the_textbook_posterior() -> None:
    """At K = 1000 the respaced betas are the betas themselves, and the mean of noise-free x_t is noise-free x_{t-1}."""
    alpha, sigma, clean, noisy, low, high = posterior_table(ALPHA_BARS).T
    torch.testing.assert_close(high.exp(), BETAS, rtol=1e-10, atol=0)
    torch.testing.assert_close(clean[1:] + noisy[1:] * alpha[1:], alpha[:-1], rtol=1e-12, atol=0)
    torch.testing.assert_close((clean[0], noisy[0]), (clean.new_ones(()), clean.new_zeros(())), rtol=0, atol=1e-12)
    expected = BETAS[1:] * (1 - ALPHA_BARS[:-1]) / (1 - ALPHA_BARS[1:])
    torch.testing.assert_close(low[1:].exp(), expected, rtol=1e-10, atol=0)
    assert low[0] == low[1]


@pytest.mark.parametrize("steps", CHAINS)
@pytest.mark.parametrize("tables, tolerance", [("stock", 2e-4), ("ours", 2e-5)])
def test_chain_equals_diffusers(steps: int, tables: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step and at the end, with tables in double precision: to 2e-5, which is the rounding of a sample divided
    by the √ᾱ of 0.006 at the noisiest step. The stock ones are in single precision, in which 1 − ᾱ is wrong by up to
    2e-4 of itself."""
    scheduler = ddpm_scheduler(steps)
    if tables == "ours":
        scheduler.alphas_cumprod = ALPHA_BARS
    hole = HoleTokens.from_grid_mask(torch.ones(2, 4, 4, dtype=torch.bool))
    theirs, ours = CanvasNoise([3, 4], hole, 5), CanvasNoise([3, 4], hole, 5)
    # Diffusers splits off the variance at dimension 1, so its samples are [B, C, n].
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: theirs.next().mT)

    x, expected = theirs.next().mT, []
    for t in scheduler.timesteps:
        step = scheduler.step(network(x.mT, t.expand(2)).mT, t, x)
        x = step.prev_sample.float()
        expected.append(step.pred_original_sample.float().mT)
    estimates: list[Tensor] = []
    sigmas, denoise = iddpm_sigmas(steps), iddpm_denoiser(network)
    start = begin(ours.next(), sigmas[0])
    result = sample_iddpm(denoise, start, sigmas, ours.next, lambda *step: estimates.append(step[2]))
    torch.testing.assert_close(result, x.mT, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.stack(estimates), torch.stack(expected), rtol=0, atol=tolerance)


def loss_inputs(t: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, noise, t, valid and a prediction [B, n, 2C]; rows of 6 and, padded, of 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, len(t), 6, 3, generator=generator).clamp(-1, 1)
    output = torch.randn(len(t), 6, 6, generator=generator)
    output[..., :3] = noise + 0.3 * output[..., :3]
    valid = torch.arange(6) < torch.tensor([6, 4])[torch.arange(len(t)) % 2, None]
    return x, noise, torch.tensor(t), valid, output


def reference_bound(x: Tensor, noise: Tensor, t: int, epsilon: Tensor, v: Tensor) -> Tensor:
    """L_vb of one row in bits by textbook formulas on distributions, in double precision, nothing shared."""
    x, noise, epsilon, v = x.double(), noise.double(), epsilon.double(), v.double()
    beta = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    xt = alpha_bar[t].sqrt() * x + (1 - alpha_bar[t]).sqrt() * noise
    x0 = (xt - (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_bar[t].sqrt()

    def smaller(t: int) -> Tensor:
        return beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])

    share = (v + 1) / 2
    deviation = (beta[t].log() * share + smaller(max(t, 1)).log() * (1 - share)).exp().sqrt()
    if t == 0:
        mass = Normal(x0, deviation).cdf(x + 1 / 255) - Normal(x0, deviation).cdf(x - 1 / 255)
        mass = torch.where(x >= 1, 1 - Normal(x0, deviation).cdf(x - 1 / 255), mass)
        return -torch.where(x <= -1, Normal(x0, deviation).cdf(x + 1 / 255), mass).log2()
    weight = alpha_bar[t - 1].sqrt() * beta[t] / (1 - alpha_bar[t])
    keep = (1 - beta[t]).sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    true = Normal(weight * x + keep * xt, smaller(t).sqrt())
    return kl_divergence(true, Normal(weight * x0 + keep * xt, deviation)) / math.log(2)


# The code's normal distribution function is an approximation, wrong by up to 3e-4 where a bin's mass is about 0.3; the
# rest is the rounding of single precision.
@pytest.mark.parametrize("t, tolerance", [(0, 3e-3), (1, 1e-5), (37, 1e-5), (500, 1e-5), (999, 1e-5)])
def test_loss_is_the_textbook_one(t: int, tolerance: float) -> None:
    x, noise, steps, valid, output = loss_inputs([t, t])
    epsilon, v = output.chunk(2, dim=-1)
    rows = []
    for row in range(2):
        squared = (epsilon[row] - noise[row]).double().square()
        bound = reference_bound(x[row], noise[row], t, epsilon[row], v[row])
        rows.append((squared + bound)[valid[row]].mean())
    loss = iddpm_loss(lambda xt, t: output, x, noise, steps, valid)
    torch.testing.assert_close(loss.double(), torch.stack(rows).mean(), rtol=tolerance, atol=0)


def test_loss_of_mixed_time_steps_is_the_mean_of_the_rows() -> None:
    """One row at t = 0 beside one at t = 700: each has its own term of the bound, and padding counts for nothing."""
    x, noise, t, valid, output = loss_inputs([0, 700])
    alone = [
        iddpm_loss(lambda xt, t, row=row: output[row], x[row], noise[row], t[row], valid[row])
        for row in (slice(0, 1), slice(1, 2))
    ]
    output[1, 4:] = 1e3
    loss = iddpm_loss(lambda xt, t: output, x, noise, t, valid)
    torch.testing.assert_close(loss, torch.stack(alone).mean(), rtol=1e-6, atol=0)


def test_network_is_asked_at_the_noised_picture() -> None:
    x, noise, t, valid, output = loss_inputs([10, 999])
    asked = []
    iddpm_loss(lambda xt, t: asked.append((xt, t)) or output, x, noise, t, valid)
    alpha_bar = ALPHA_BARS[t].float()[:, None, None]
    torch.testing.assert_close(asked[0][0], alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise)
    assert torch.equal(asked[0][1], t)


# At t = 0 the code's approximate distribution function has a slope of its own, so that values in the tails differ.
@pytest.mark.parametrize("t, tolerance", [(0, 5e-3), (1, 1e-4), (40, 1e-4)])
def test_each_term_trains_its_own_half(t: int, tolerance: float) -> None:
    """The noise half's gradient is that of the squared error alone, the variance half's that of the bound alone."""
    x, noise, steps, valid, output = loss_inputs([t])
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(iddpm_loss(lambda xt, t: output, x, noise, steps, valid), output)

    epsilon, v = output.detach().chunk(2, dim=-1)
    torch.testing.assert_close(gradient[..., :3], 2 * (epsilon - noise) / noise.numel(), rtol=1e-5, atol=1e-8)
    v = v.double().requires_grad_()
    (expected,) = torch.autograd.grad(reference_bound(x[0], noise[0], t, epsilon[0], v[0]).mean(), v)
    assert (gradient[..., 3:] - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("deviation", [0.0074, 0.01, 0.2])
@pytest.mark.parametrize("x", [-1.0, -0.7, 0.0, 0.5, 1.0])
def test_likelihood_of_a_bin(x: float, deviation: float) -> None:
    """Against scipy's normal distribution, whose function the code's misses by up to 3e-4 on each side of the bin."""
    means = x + deviation * np.linspace(-2, 2, 9)
    upper = 1.0 if x == 1 else norm.cdf(x + 1 / 255, means, deviation)
    lower = 0.0 if x == -1 else norm.cdf(x - 1 / 255, means, deviation)
    nll = discretised_gaussian_nll(
        torch.full((9,), x).double(), torch.from_numpy(means), torch.tensor(2 * math.log(deviation)).double()
    )
    np.testing.assert_allclose(np.exp(-nll.numpy()), upper - lower, rtol=0, atol=6e-4)


def test_likelihood_of_the_impossible_is_finite() -> None:
    nll = discretised_gaussian_nll(torch.tensor([0.5]), torch.tensor([-30.0]), torch.tensor([math.log(1e-4)]))
    torch.testing.assert_close(nll, torch.tensor([-math.log(1e-12)]))


@pytest.mark.parametrize("learned_variance", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.5, 0.0, -1.0])
def test_guidance_is_one_call_of_both_branches(guidance: float, learned_variance: bool) -> None:
    """Rows of text are told apart by what the network adds; the variance is the conditional branch's."""
    generator = torch.Generator().manual_seed(2)
    conditional, unconditional = torch.randn(2, 3, 5, 8, generator=generator)
    x, t = torch.randn(3, 5, 4, generator=generator), torch.tensor([5, 6, 7])
    text = torch.cat((conditional, unconditional)[: branches(guidance)])
    calls = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return text + t[:, None, None] + torch.cat((x, x), dim=-1)

    predicted = guide(network, guidance, learned_variance)(x, t)
    assert calls == [3 * branches(guidance)]
    alone = t[:, None, None] + torch.cat((x, x), dim=-1)
    expected = unconditional + guidance * (conditional - unconditional) + alone
    if learned_variance:
        expected[..., 4:] = (conditional + alone)[..., 4:]
    torch.testing.assert_close(predicted, expected)
    assert (len(text) == 3) == (guidance == 1)
