"""ComfyUI for the tests: inside this process, once per run, and as a running server.

In process it takes ten seconds once, and tests call the host's functions directly. The price is order: the checkout
goes to the front of `sys.path`, so that the host's `nodes` is found and not this repository's folder of that name, and
the host is told to use the CPU before anything of it asks for a device.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.comfyui import find_checkout, stand_in

from .in_process import Pack
from .laboratory import add_laboratory
from .running_server import PACK, Server, running


def checkout() -> Path:
    try:
        return find_checkout()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """ComfyUI's own `nodes` module, on the CPU; skips where there is no checkout or it cannot be imported."""
    path = checkout()
    stand_in()
    sys.path.insert(0, str(path))
    try:
        from comfy.cli_args import args

        args.cpu = True
        import nodes
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision built for another torch
        pytest.skip(f"the ComfyUI at {path} cannot be imported (pip install -e '.[host]'): {error!r}")
    assert Path(nodes.__file__).parent == path
    import folder_paths

    for name in ("input", "output", "temp"):
        getattr(folder_paths, f"set_{name}_directory")(str(tmp_path_factory.mktemp(name)))
    yield nodes
    from comfy.model_patcher import ModelPatcher

    del ModelPatcher.__del__  # those that are left go after the host's modules, and would complain below the summary


@pytest.fixture(scope="session")
def pack(host: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Beside the model that ships, it finds the laboratory's."""
    assert asyncio.run(host.load_custom_node(str(PACK))), "the host's log says why"
    extras = "custom_sampler", "mask", "flux", "model_advanced", "model_merging", "differential_diffusion", "edit_model"
    for extra in extras:
        asyncio.run(host.load_custom_node(str(Path(host.__file__).parent / "comfy_extras" / f"nodes_{extra}.py")))
    add_laboratory(tmp_path_factory.mktemp("models"))
    return Pack(host)


@pytest.fixture
def sessions(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The samplings on KV contexts; each counts calls of the model that computed every token, and all others."""
    begun: list[Any] = []
    for cache in (pack.part("lazydiff.cache.kv_cache").KVCache, pack.part("lazydiff.cache.recording").RecordingCache):

        def session(self: Any, sigmas: Any, begin: Any = cache.session) -> Any:
            begun.append(begin(self, sigmas))
            return begun[-1]

        monkeypatch.setattr(cache, "session", session)
    return begun


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with the pack and nothing else; it ends with the tests."""
    pytest.importorskip("aiohttp", reason="the host's packages are missing: pip install -e '.[host]'")
    with running(checkout(), tmp_path_factory.mktemp("comfyui"), *os.environ.get("COMFYUI_ARGS", "").split()) as server:
        yield server
