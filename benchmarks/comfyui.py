"""A ComfyUI checkout, also where torchvision and torchaudio are missing; as a script, python comfyui.py CHECKOUT
[its arguments], its server.

Their wheels are built for one build of torch each. Nothing measured or tested here calls them, but the host does not
start without.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACK = Path(__file__).resolve().parents[1]


class StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class StandIns(MetaPathFinder, Loader):
    """Finds some packages, and all of their parts, as empty modules."""

    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in() -> None:
    """Let the host import torchvision, and what is built on it, where they are not installed."""
    missing = [name for name in ("torchvision", "torchaudio", "spandrel") if importlib.util.find_spec(name) is None]
    if "torchvision" in missing:
        # Looks for torchvision once, on import, and must not find the stand-in.
        import transformers.models.t5.modeling_t5  # noqa: F401
    if missing:
        sys.meta_path.append(StandIns(missing))


def find_checkout() -> Path:
    """The checkout at COMFYUI_PATH, or at ~/comfy/ComfyUI. Errors: FileNotFoundError that says what to do."""
    path = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser().resolve()
    if not (path / "nodes.py").is_file():
        raise FileNotFoundError(f"no ComfyUI at {path}: clone github.com/comfyanonymous/ComfyUI and set COMFYUI_PATH")
    return path


def load_pack(cpu: bool) -> str:
    """Start the host in this process and let it load this pack; returns the name that the pack's modules begin with.

    Errors: SystemExit where there is no host, or it cannot load the pack.
    """
    try:
        path = find_checkout()
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None
    stand_in()
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = cpu
    args.use_pytorch_cross_attention = True  # what the host takes on a GPU; its default on a CPU is for little memory
    import nodes

    if not asyncio.run(nodes.load_custom_node(str(PACK))):
        raise SystemExit("the host could not load the pack; its log above says why")
    return next(name for name in sys.modules if name.endswith("nodes.host.model")).removesuffix("nodes.host.model")


@contextmanager
def serving(
    checkout: Path, folder: Path, *arguments: str, pack: Path = PACK
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server of a checkout with a pack and nothing else, all of whose files lie in `folder`: its port, its process.

    Errors: RuntimeError with the end of its log, if it does not start.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/vae", "models/checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    link, log = folder / "custom_nodes" / "lazydiffusion", folder / "server.log"
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, __file__, str(checkout), "--cpu", "--port", str(port), "--base-directory", str(folder),
        "--disable-api-nodes", "--database-url", f"sqlite:///{folder / 'comfy.db'}", *arguments,
    ]  # fmt: skip
    with log.open("w") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/queue", timeout=30).close()
                break
            except OSError:
                time.sleep(0.2)
        yield port, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def accepted(kind: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a network that this release of the host knows; kind: class of the host's configuration."""
    import comfy.ldm.chroma.model
    import comfy.ldm.chroma_radiance.model
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model

    modules = {
        "Flux": comfy.ldm.flux.model.FluxParams,
        "ChromaRadiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
        "Chroma": comfy.ldm.chroma.model.ChromaParams,
        "HunyuanImage": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
        "HunyuanVideo": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
    }
    known = next((modules[name] for name in modules if kind.startswith(name)), None)
    return {key: value for key, value in sizes.items() if known is None or key in known.__dataclass_fields__}


if __name__ == "__main__":
    checkout = sys.argv[1]
    stand_in()
    sys.argv = [os.path.join(checkout, "main.py"), *sys.argv[2:]]
    sys.path[0] = checkout
    os.chdir(checkout)
    runpy.run_path("main.py", run_name="__main__")
