"""A pretended GPU: tensors that say "cuda:0" and hold CPU data, so that what a GPU would refuse or wait for shows on
any machine.

    with pretended_gpu() as gpu:
        model.to("cuda")
        gpu.reset()
        model(x.to("cuda"))
        print(gpu.total, gpu.waits)

Operations on tensors of two devices raise, as CUDA's do. Kernel launches are counted by operation; what makes the host
wait for the device, or copies from memory that is not pinned, is counted by the line of the project that caused it.

It says nothing about real kernels, their speed or their rounding. There is no backward pass, and `inference_mode` is
`no_grad`. Only for builds of torch that know no CUDA, on Linux and macOS.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # lists torch's functions when it is imported, and wants each of them to be another
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
ROOT = str(Path(__file__).resolve().parents[1]) + "/"
PROJECT = tuple(ROOT + part for part in ("lazydiff/", "nodes/"))

WAITS = {  # what has to read a number before the host can go on
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.equal.default: "equal",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave by a tensor",
    aten._linalg_check_errors.default: "check for errors",
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
NO_LAUNCH = {
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default,
    aten.new_empty_strided.default, aten.detach.default, aten.lift_fresh.default, aten._unsafe_view.default,
    aten._local_scalar_dense.default,
}  # fmt: skip
ONE_DEVICE_ONLY = ("cat", "stack", "mm", "bmm", "addmm", "index_select", "gather", "scatter")  # even for single numbers


class PretendedTensor(torch.Tensor):
    """What the device has: a CPU tensor behind a shell."""

    data_on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> PretendedTensor:
        shell = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype, device=CUDA
        )
        shell.data_on_cpu = data.detach()
        return shell

    def __repr__(self, **kwargs: Any) -> str:
        return f"PretendedTensor({self.data_on_cpu!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copy = PretendedTensor(self.data_on_cpu.clone())
            parameter = getattr(self, "_is_param", False)
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if parameter else copy
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of `pretended_gpu()`")


class PretendedGPU:
    """What was seen since the last `reset`."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()  # by operation
        self.waits: Counter[tuple[str, str]] = Counter()  # by kind and line: the host waits for the device
        self.copies: Counter[tuple[str, str]] = Counter()  # likewise: to the device, from memory that is not pinned
        self.pinned: Counter[tuple[str, str]] = Counter()  # likewise: nobody waits for these
        self.total_memory = self.free_memory = 128 << 30  # what the driver says; nothing is counted

    @property
    def total(self) -> int:
        return self.launches.total()

    def reset(self) -> None:
        for counter in (self.launches, self.waits, self.copies, self.pinned):
            counter.clear()

    def count(self, call: Callable[[], Any]) -> Counter[str]:
        """Launches of a call; waits and copies of it are then in `waits` and `copies`."""
        self.reset()
        call()
        return Counter(self.launches)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation, on the device if a tensor of its arguments is there or the result is to be."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if isinstance(x, PretendedTensor)]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if func is aten.is_pinned.default:
            return getattr(args[0], "pinned", False)
        if not on_device and wanted != "cuda":
            return self._on_host(func, args, kwargs)
        if kwargs.get("pin_memory") or func is aten._pin_memory.default:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        self._check(func, args, kwargs, [x for x in tensors if not isinstance(x, PretendedTensor)], wanted)
        mutates = func._schema.is_mutable
        if not _is_view(func) and func not in NO_LAUNCH:
            self.launches[str(func).removeprefix("aten.")] += 1
        on_cpu = {**kwargs, "device": torch.device("cpu")} if wanted == "cuda" else kwargs
        out = func(*tree_map(_inside, args), **tree_map(_inside, on_cpu))
        if mutates and func._schema.name.endswith("_"):
            return args[0]
        if mutates and "out" in kwargs:
            return kwargs["out"]
        return out if wanted == "cpu" else tree_map(_outside, out)

    def attend(self, args: Any, kwargs: Any) -> torch.Tensor:
        """Scaled dot-product attention as the one kernel that it is on a GPU."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if not all(isinstance(x, PretendedTensor) for x in tensors):
            raise _mixed("scaled_dot_product_attention", tensors)
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        self.launches["attention" if mask is None else f"attention with a mask ({mask.dtype})"] += 1
        with torch._C.DisableTorchFunctionSubclass():
            return PretendedTensor(
                F.scaled_dot_product_attention(*tree_map(_inside, args), **tree_map(_inside, kwargs))
            )

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten._pin_memory.default:
            out = args[0].clone()
            out.pinned = True
            return out
        if not kwargs.get("pin_memory"):
            out = func(*args, **kwargs)
            if args and getattr(args[0], "pinned", False) and isinstance(out, torch.Tensor) and _is_view(func):
                out.pinned = True
            return out
        out = func(*args, **{**kwargs, "pin_memory": False})
        out.pinned = True
        return out

    def _check(self, func: Any, args: Any, kwargs: Any, on_host: list[torch.Tensor], wanted: str | None) -> None:
        """Raises for two devices; notes what waits."""
        if func in WAITS and not (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None):
            self.waits[WAITS[func], _where()] += 1
        if func is aten._to_copy.default:
            self._copied(args[0], wanted == "cuda" if wanted else isinstance(args[0], PretendedTensor), None, kwargs)
        elif func is aten.copy_.default:
            target, source = args[:2]
            late = {**kwargs, "non_blocking": kwargs.get("non_blocking") or (len(args) > 2 and args[2])}
            self._copied(source, isinstance(target, PretendedTensor), target, late)
        elif func in INDEXING:
            places = [place for place in args[1] if place is not None]
            if not isinstance(args[0], PretendedTensor):
                raise _mixed(func, [args[0], *places])
            if any(not isinstance(place, PretendedTensor) for place in places):
                self.copies["index on the host", _where()] += 1
            if any(place.dtype in (torch.bool, torch.uint8) for place in places):
                self.waits["index by bool", _where()] += 1
            if any(isinstance(x, torch.Tensor) and x.dim() and not isinstance(x, PretendedTensor) for x in args[2:]):
                raise _mixed(func, on_host)
        elif wanted is None and any(x.dim() or func._overloadpacket.__name__ in ONE_DEVICE_ONLY for x in on_host):
            raise _mixed(func, on_host)

    def _copied(self, source: torch.Tensor, to_device: bool, target: torch.Tensor | None, kwargs: Any) -> None:
        from_device = isinstance(source, PretendedTensor)
        if from_device == to_device:
            return
        host = target if from_device else source
        if getattr(host, "pinned", False) and kwargs.get("non_blocking"):
            self.pinned["to the host" if from_device else "to the device", _where()] += 1
        elif from_device:
            self.waits["copy to the host", _where()] += 1
        else:
            self.copies["copy to the device", _where()] += 1


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch decides before it comes to operations."""

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.device and args and isinstance(args[0], int):  # a number is of the current kind of device
            return CUDA
        if name == "cuda":
            return args[0].to(CUDA, **kwargs)
        if name == "to":  # "cuda" means the current device, whose number torch would ask the driver for
            args, kwargs = tree_map(_numbered, args), tree_map(_numbered, kwargs)
        if func in (torch.tensor, torch.as_tensor) or name == "new_tensor":
            data = args[1] if name == "new_tensor" else args[0]
            device = kwargs.get("device") or (args[0].device if name == "new_tensor" else None)
            if device is not None and torch.device(device).type == "cuda" and not isinstance(data, torch.Tensor):
                self.gpu.copies["torch.tensor", _where()] += 1
                dtype = kwargs.get("dtype") or (args[0].dtype if name == "new_tensor" else None)
                return PretendedTensor(torch.tensor(data, dtype=dtype))
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], PretendedTensor):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(place, list) for place in places):
                self.gpu.copies["index by a list", _where()] += 1
                places = tuple(PretendedTensor(torch.tensor(p)) if isinstance(p, list) else p for p in places)
                args = (args[0], places, *args[2:])
        if func is F.scaled_dot_product_attention and not torch.is_grad_enabled():
            if any(isinstance(x, PretendedTensor) for x in tree_leaves((args, kwargs))):
                return self.gpu.attend(args, kwargs)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """The device "cuda" while the context lasts; torch is as it was afterwards."""
    gpu = PretendedGPU()
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter cannot change its class in place
    try:
        with (
            patch.multiple(torch.cuda, **_driver(gpu)),
            patch.object(torch.Tensor, "pin_memory", lambda self, *args: aten._pin_memory(self)),
            patch.object(torch, "inference_mode", _inference_mode),
            _guard(),
            _Operations(gpu),
            _Functions(gpu),
        ):
            yield gpu
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapping)


@contextlib.contextmanager
def _inference_mode(mode: bool = True) -> Iterator[None]:
    with torch.set_grad_enabled(not mode and torch.is_grad_enabled()):
        yield


class _Stream:
    """There is one order of operations, whatever stream they are put into."""

    cuda_stream, device = 0, CUDA

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    wait_event = wait_stream

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass


class _Event:
    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def record(self, *args: Any) -> None:
        pass

    wait = record

    def query(self) -> bool:
        return True


def _driver(gpu: PretendedGPU) -> dict[str, Any]:
    """What `torch.cuda` says of the device."""
    properties = SimpleNamespace(
        name="Pretended GPU", major=9, minor=0, total_memory=gpu.total_memory, multi_processor_count=132,
        gcnArchName="", is_integrated=0, uuid="pretended",
    )  # fmt: skip

    def synchronize(*args: Any) -> None:
        gpu.waits["synchronize", _where()] += 1

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    registered = SimpleNamespace(cudaHostRegister=lambda *args: 0, cudaHostUnregister=lambda *args: 0)
    return dict(
        _lazy_init=nothing, init=nothing, empty_cache=nothing, ipc_collect=nothing, set_device=nothing,
        reset_peak_memory_stats=nothing, manual_seed=nothing, manual_seed_all=nothing, synchronize=synchronize,
        is_available=lambda: True, is_initialized=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        get_device_properties=lambda *args: properties, get_device_name=lambda *args: properties.name,
        get_device_capability=lambda *args: (9, 0), get_arch_list=lambda: ["sm_90"],
        mem_get_info=lambda *args: (gpu.free_memory, gpu.total_memory), memory_stats=lambda *args: defaultdict(int),
        memory_allocated=lambda *args: 0, is_bf16_supported=lambda *args, **kwargs: True,
        get_allocator_backend=lambda: "native", cudart=lambda: registered,
        current_stream=_Stream, default_stream=_Stream, Stream=_Stream, Event=_Event, stream=lambda stream: _Stream(),
        device=lambda device: contextlib.nullcontext(),
    )  # fmt: skip


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    """Lend "cuda" the guard of "meta", which does nothing: torch asks every kind of device for one before it runs
    anything there, and without CUDA has none for it."""
    kinds = torch._C._autograd.DeviceType
    cuda, meta = 1, 14  # in c10/core/DeviceType.h
    assert kinds.CUDA.value == cuda and kinds.Meta.value == meta
    suffix = "dylib" if sys.platform == "darwin" else "so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libc10.{suffix}"))
    registry = (ctypes.c_void_p * (meta + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, registry[cuda] = registry[cuda], registry[meta]
    try:
        yield
    finally:
        registry[cuda] = before


def _inside(x: Any) -> Any:
    return x.data_on_cpu if isinstance(x, PretendedTensor) else x


def _outside(x: Any) -> Any:
    return PretendedTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, PretendedTensor) else x


def _is_view(func: Any) -> bool:
    return not func._schema.is_mutable and any(each.alias_info is not None for each in func._schema.returns)


def _numbered(x: Any) -> Any:
    return CUDA if isinstance(x, (str, torch.device)) and torch.device(x).type == "cuda" else x


def _mixed(func: Any, on_host: list[torch.Tensor]) -> RuntimeError:
    shapes = [list(x.shape) for x in on_host if not isinstance(x, PretendedTensor)]
    return RuntimeError(f"Expected all tensors to be on the same device, cuda:0 ({func}; on the CPU: {shapes})")


def _where() -> str:
    """The line of the project that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(PROJECT):
            return f"{frame.f_code.co_filename.removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
