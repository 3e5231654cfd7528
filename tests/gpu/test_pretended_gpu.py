"""The pretended GPU refuses and counts what a GPU would."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.pretended_gpu import PretendedGPU
from lazydiff.core.transfer import to_device, to_main_memory


def test_two_devices_do_not_mix(gpu: PretendedGPU) -> None:
    there, here = torch.arange(6.0).view(2, 3).to("cuda"), torch.ones(2, 3)
    assert there.device == torch.device("cuda:0") and there.cpu().device.type == "cpu"
    mixed = (lambda: there + here, lambda: torch.cat((there, here)), lambda: here[there.long()], lambda: there @ here.T)
    for mix in mixed:
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert torch.equal((there * torch.tensor(2.0) + 1).cpu(), torch.arange(6.0).view(2, 3) * 2 + 1)


def test_launches_are_counted(gpu: PretendedGPU) -> None:
    x = torch.randn(1, 2, 4, 8).to("cuda")
    layer = torch.nn.Linear(8, 8).to("cuda")
    assert gpu.count(lambda: layer(x[:, 0]).mT[..., 1:].flatten(1)) == {"addmm.default": 1, "clone.default": 1}
    assert gpu.count(lambda: scaled_dot_product_attention(x, x, x)) == {"attention": 1}
    assert gpu.count(lambda: torch.zeros(3, device="cuda") + 1).total() == 2
    assert not gpu.waits and not gpu.copies


def test_waits_and_copies_are_counted(gpu: PretendedGPU) -> None:
    x = torch.arange(3.0).to("cuda")
    for wait in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 1], x.nonzero, x.tolist):
        gpu.count(wait)
        assert sum(gpu.waits.values()) == 1
    here = torch.tensor([1])
    for copy in (lambda: here.to("cuda"), lambda: x[here], lambda: torch.tensor([1], device="cuda")):
        gpu.count(copy)
        assert sum(gpu.copies.values()) == 1 and not gpu.waits
    gpu.count(lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True))
    assert sum(gpu.pinned.values()) == 1 and not gpu.copies


def test_torch_is_left_as_it_was() -> None:
    from benchmarks.pretended_gpu import pretended_gpu

    with pretended_gpu():
        torch.ones(1, device="cuda")
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")


def test_copies_through_pinned_memory_are_waited_for_by_nobody(gpu: PretendedGPU) -> None:
    """Of a part of it, too."""
    x = torch.randn(3, 4)
    there = to_device(x, "cuda")
    waiting = to_main_memory(there)
    assert there.device.type == "cuda" and torch.equal(waiting, x)
    there[:2].copy_(waiting[:2], non_blocking=True)
    assert not gpu.waits and not gpu.copies and gpu.pinned.total() == 3
