"""The Poisson blend against a direct solve of equations 7-13 of Perez et al. 2003, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from lazydiff.core.poisson import _build_levels, _conjugate_gradients, _right_hand_side, poisson_blend

# Images are white noise in 0..255, the hardest content there is; a fiftieth of a grey level is far below what is seen.
GREY_LEVELS = 0.02
# With enough iterations float64 is limited by rounding alone.
CONVERGED, ROUNDING = 40, 1e-8


def direct_solve(f: np.ndarray, g: np.ndarray, hole: np.ndarray, mixed: bool = False) -> np.ndarray:
    """The paper's equations written down pixel by pixel. f, g: [C, H, W], hole: [H, W] bool."""
    pixels = [(int(y), int(x)) for y, x in zip(*hole.nonzero(), strict=True)]
    number = {p: i for i, p in enumerate(pixels)}
    matrix, rhs = lil_matrix((len(pixels), len(pixels))), np.zeros((len(pixels), len(f)))
    for i, (y, x) in enumerate(pixels):
        p = (slice(None), y, x)
        for qy, qx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= qy < hole.shape[0] and 0 <= qx < hole.shape[1]):
                continue
            q = (slice(None), qy, qx)
            source, destination = g[p] - g[q], f[p] - f[q]
            rhs[i] += np.where(abs(destination) > abs(source), destination, source) if mixed else source
            matrix[i, i] += 1
            if hole[qy, qx]:
                matrix[i, number[qy, qx]] = -1
            else:
                rhs[i] += f[q]
    result = f.copy()
    result[:, hole] = spsolve(matrix.tocsc(), rhs).reshape(len(pixels), -1).T
    return result


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def masks() -> dict[str, np.ndarray]:
    height, width = 45, 62
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    ring = disc(height, width, 22, 30, 20) & ~disc(height, width, 22, 30, 9)
    blobs = np.any([disc(height, width, *rng.uniform((0, 0, 2), (height, width, 12))) for _ in range(6)], axis=0)
    return {
        "random 60 %": rng.random((height, width)) < 0.6,
        "overlapping blobs": blobs,
        "disc": disc(height, width, 20, 33, 15),
        "one border": (y < 20) & (x > 10) & (x < 40),
        "two borders": (y < 20) & (x < 30),
        "three borders": y < 20,
        "four borders": (abs(y - 22) < 6) | (abs(x - 30) < 6),
        "many components": (y % 7 < 5) & (x % 9 < 6),
        "thin stripes": x % 3 == 1,
        "snake": (y % 4 == 1) | ((x == 1) & (y % 8 == 2)) | ((x == 60) & (y % 8 == 6)),
        "ring with an island": ring | disc(height, width, 22, 30, 4),
        "one pixel": (y == 12) & (x == 40),
        "a corner pixel": (y == 44) & (x == 61),
        "all but one pixel": (y != 12) | (x != 40),
        "all but a corner": (y != 0) | (x != 61),
        "one row high": np.arange(40)[None] % 13 > 2,
        "one column wide": np.arange(41)[:, None] % 13 > 2,
        "two pixels": np.array([[True, False]]),
        "large and odd": disc(131, 157, 60, 70, 55) | (np.mgrid[:131, :157][0] > 110),
    }


MASKS = masks()


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).mul_(255).to(dtype)


def as_mask(hole: np.ndarray) -> Tensor:
    return torch.from_numpy(hole)[None, None]


def error(result: Tensor, expected: Tensor | np.ndarray) -> float:
    return (result.double() - torch.as_tensor(expected).double()).abs().max().item()


@pytest.mark.parametrize("gradients", ["source", "mixed"])
@pytest.mark.parametrize("name", MASKS)
def test_agrees_with_a_direct_solve(name: str, gradients: str) -> None:
    mask = as_mask(MASKS[name])
    f, g = noise(1, 2, *mask.shape[-2:]), noise(1, 2, *mask.shape[-2:])
    expected = direct_solve(f[0].numpy(), g[0].numpy(), MASKS[name], mixed=gradients == "mixed")

    result = poisson_blend(f.float(), g.float(), mask, gradients)
    assert result.dtype == torch.float32
    assert error(result[0], expected) < GREY_LEVELS

    result = poisson_blend(f, g, mask, gradients, iterations=CONVERGED)
    assert result.dtype == torch.float64
    assert error(result[0], expected) < ROUNDING


@pytest.mark.parametrize("known", [(0, 0), (170, 128)])
def test_float32_is_enough_for_one_known_pixel_in_a_large_canvas(known: tuple[int, int]) -> None:
    """The worst conditioned mask. A source that is off by a constant must be shifted back by just that constant."""
    f = noise(1, 1, 512, 512, dtype=torch.float32)
    mask = torch.ones(1, 1, 512, 512)
    mask[..., known[0], known[1]] = 0
    assert error(poisson_blend(f, f + 200, mask), f) < GREY_LEVELS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_pixels_outside_the_hole_are_bit_identical_and_inputs_untouched(dtype: torch.dtype, gradients: str) -> None:
    mask = (torch.rand(2, 1, 33, 41) < 0.3).float()
    f, g = noise(2, 3, 33, 41, dtype=dtype), noise(2, 3, 33, 41, dtype=dtype)
    copies = [f.clone(), g.clone(), mask.clone()]
    result = poisson_blend(f, g, mask, gradients)
    assert result.dtype == dtype
    outside = (mask == 0).expand_as(f)
    assert torch.equal(result[outside], f[outside])
    assert not torch.equal(result, f)
    assert all(torch.equal(a, b) for a, b in zip((f, g, mask), copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(dtype: torch.dtype) -> None:
    mask = as_mask(MASKS["disc"])
    f, g = noise(1, 3, 45, 62, dtype=dtype), noise(1, 3, 45, 62, dtype=dtype)
    assert torch.equal(poisson_blend(f, g, mask), poisson_blend(f.float(), g.float(), mask).to(dtype))


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_full_mask_gives_the_source_and_empty_mask_the_destination(gradients: str) -> None:
    f, g = noise(1, 3, 20, 30), noise(1, 3, 20, 30)
    full, empty = torch.ones(1, 1, 20, 30), torch.zeros(1, 1, 20, 30)
    for mask, expected in ((full, g), (empty, f)):
        result = poisson_blend(f, g, mask, gradients)
        assert torch.equal(result, expected)
        assert result.data_ptr() not in (f.data_ptr(), g.data_ptr())  # a new tensor, here as everywhere

    disc = as_mask(MASKS["disc"])[..., :20, 20:50].float()
    result = poisson_blend(f.repeat(3, 1, 1, 1), g.repeat(3, 1, 1, 1), torch.cat([full, disc, empty]), gradients)
    assert torch.equal(result[0], g[0])
    assert torch.equal(result[2], f[0])
    assert error(result[1:2], poisson_blend(f, g, disc, gradients)) < GREY_LEVELS


def test_a_source_equal_to_the_destination_changes_no_bit() -> None:
    f = noise(1, 3, 45, 62, dtype=torch.float32)
    assert torch.equal(poisson_blend(f, f.clone(), as_mask(MASKS["random 60 %"])), f)


@pytest.mark.parametrize("name", MASKS)
def test_a_source_off_by_a_constant_gives_the_destination(name: str) -> None:
    mask = as_mask(MASKS[name])
    f = noise(1, 2, *mask.shape[-2:], dtype=torch.float32)
    assert error(poisson_blend(f, f - 90, mask), f) < GREY_LEVELS


@pytest.mark.parametrize("name", ["disc", "many components", "ring with an island"])
def test_a_flat_source_continues_a_plane(name: str) -> None:
    hole = MASKS[name].copy()
    hole[[0, -1]] = hole[:, [0, -1]] = False  # at the canvas border the flux is zero, which a plane's is not
    y, x = torch.meshgrid(torch.arange(45.0), torch.arange(62.0), indexing="ij")
    plane = (3 * x - 2 * y + 100)[None, None]
    assert error(poisson_blend(plane, torch.full_like(plane, 7), as_mask(hole)), plane) < GREY_LEVELS


@pytest.mark.parametrize("name", MASKS)
def test_correction_stays_between_the_differences_at_the_rim(name: str) -> None:
    """Discrete maximum principle, over all components together."""
    hole = MASKS[name]
    padded = np.pad(hole, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    mask, rim = as_mask(hole), as_mask(beside & ~hole)
    f, g = noise(1, 1, *hole.shape, dtype=torch.float32), noise(1, 1, *hole.shape, dtype=torch.float32)
    correction = (poisson_blend(f, g, mask) - g)[mask]
    assert correction.min() >= (f - g)[rim].min() - GREY_LEVELS
    assert correction.max() <= (f - g)[rim].max() + GREY_LEVELS


def test_components_together_are_components_apart() -> None:
    first, second = disc(45, 62, 14, 14, 12), disc(45, 62, 28, 46, 15)
    f, g = noise(1, 3, 45, 62, dtype=torch.float32), noise(1, 3, 45, 62, dtype=torch.float32)
    together = poisson_blend(f, g, as_mask(first | second))
    apart = poisson_blend(poisson_blend(f, g, as_mask(first)), g, as_mask(second))
    assert error(together, apart) < GREY_LEVELS


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_channels_and_items_are_independent(gradients: str) -> None:
    names = ["disc", "three borders", "random 60 %", "one pixel"]
    mask = torch.cat([as_mask(MASKS[name]) for name in names])
    f, g = noise(4, 3, 45, 62, dtype=torch.float32), noise(4, 3, 45, 62, dtype=torch.float32)
    f[:, 2] *= 1e-3  # converges at a scale of its own
    result = poisson_blend(f, g, mask, gradients)

    order = [2, 0, 1]
    assert error(poisson_blend(f[:, order], g[:, order], mask, gradients), result[:, order]) < GREY_LEVELS
    for i in range(len(names)):  # each on a crop of its own
        item = slice(i, i + 1)
        assert error(poisson_blend(f[item], g[item], mask[item], gradients), result[item]) < GREY_LEVELS


def test_a_batch_gives_the_very_bits_of_its_items() -> None:
    f, g = noise(3, 3, 45, 62, dtype=torch.float32), noise(3, 3, 45, 62, dtype=torch.float32)
    mask = torch.zeros(1, 1, 45, 62)
    mask[..., 10:30, 20:44] = 1
    together = poisson_blend(f, g, mask.expand(3, -1, -1, -1))
    assert all(torch.equal(together[i], poisson_blend(f[i, None], g[i, None], mask)[0]) for i in range(3))


def test_mixed_gradients_keep_the_destination_under_a_flat_source_and_the_source_over_a_flat_destination() -> None:
    noisy, flat = noise(1, 3, 45, 62, dtype=torch.float32), torch.full((1, 3, 45, 62), 90.0)
    mask = as_mask(MASKS["overlapping blobs"])
    assert error(poisson_blend(noisy, flat, mask, "mixed"), noisy) < GREY_LEVELS
    assert torch.equal(poisson_blend(flat, noisy, mask, "mixed"), poisson_blend(flat, noisy, mask, "source"))


def test_soft_masks_are_cut_at_one_half() -> None:
    f, g = noise(1, 3, 45, 62), noise(1, 3, 45, 62)
    hole = as_mask(MASKS["disc"])
    soft = torch.where(hole, 0.51, 0.5)
    assert torch.equal(poisson_blend(f, g, soft), poisson_blend(f, g, hole))


def test_channels_last_images_give_the_same_pixels() -> None:
    f, g = noise(1, 45, 62, 3), noise(1, 45, 62, 3)
    mask = as_mask(MASKS["random 60 %"])
    expected = poisson_blend(f.permute(0, 3, 1, 2).contiguous(), g.permute(0, 3, 1, 2).contiguous(), mask)
    assert error(poisson_blend(f.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2), mask), expected) < ROUNDING


def test_solver_never_waits_for_the_device() -> None:
    """A meta tensor has no values: whatever asks for one raises."""
    f, g = torch.empty(2, 3, 45, 62, device="meta"), torch.empty(2, 3, 45, 62, device="meta")
    unknown = torch.empty(2, 1, 45, 62, device="meta", dtype=torch.bool)
    rhs = _right_hand_side(f, g, unknown, "mixed")
    assert _conjugate_gradients(_build_levels(unknown, f.dtype), rhs, iterations=2).shape == f.shape


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_cuda_agrees_with_cpu(gradients: str) -> None:
    f, g = noise(1, 3, 45, 62, dtype=torch.float32), noise(1, 3, 45, 62, dtype=torch.float32)
    mask = as_mask(MASKS["random 60 %"])
    result = poisson_blend(f.cuda(), g.cuda(), mask.cuda(), gradients)
    assert error(result.cpu(), poisson_blend(f, g, mask, gradients)) < GREY_LEVELS


IMAGE, HOLE = torch.rand(1, 3, 8, 9), torch.ones(1, 1, 8, 9)
NAN = torch.full_like(IMAGE, float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"destination": IMAGE[0]}, r"destination must be a batch \[B, C, H, W\]"),
        ({"source": IMAGE[0, 0]}, r"source must be a batch \[B, C, H, W\]"),
        ({"mask": HOLE[:, 0]}, r"mask must be a batch \[B, C, H, W\]"),
        ({"destination": IMAGE[..., :0]}, "destination must be .* at least one pixel"),
        ({"source": IMAGE[..., :8]}, r"destination is 9x8 .*source is 8x8 .*make the source match"),
        ({"source": IMAGE.repeat(2, 1, 1, 1)}, r"source is 9x8 \(2 in the batch, 3 channels\)"),
        ({"mask": HOLE[:, :, :7]}, r"destination is 9x8 .*mask is 9x7 .*one channel"),
        ({"mask": HOLE.repeat(1, 3, 1, 1)}, "one channel"),
        ({"mask": HOLE.repeat(2, 1, 1, 1)}, "the destination's batch"),
        ({"destination": IMAGE.byte()}, "destination must be floating point, got torch.uint8"),
        ({"source": IMAGE.long()}, "source must be floating point, got torch.int64"),
        ({"destination": IMAGE + NAN}, "destination contains NaN or infinity"),
        ({"source": IMAGE + NAN}, "source contains NaN or infinity"),
        ({"source": IMAGE / 0}, "source contains NaN or infinity"),
        ({"mask": HOLE * 255}, r"mask must lie within 0\.\.1, got 255\.\.255: divide an 8-bit mask by 255"),
        ({"mask": HOLE - 1.5}, r"mask must lie within 0\.\.1, got -0\.5\.\.-0\.5"),
        ({"mask": NAN[:, :1]}, r"mask must lie within 0\.\.1, got nan"),
        ({"gradients": "both"}, "gradients must be source or mixed, got 'both'"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_says_what_is_wrong_with_the_input(arguments: dict, message: str) -> None:
    valid = {"destination": IMAGE, "source": IMAGE, "mask": HOLE}
    with pytest.raises(ValueError, match=message):
        poisson_blend(**(valid | arguments))
