"""A running ComfyUI to talk to: its start, its port and its end."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.comfyui import serving

from .laboratory import put_laboratory

PACK = Path(__file__).parents[2]
TABLE = "small-table.png"  # a picture of the small model's size, with a hole


@dataclass
class Execution:
    """What the server said about one prompt."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: int = 0
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def executed(self) -> list[str]:
        """Nodes that ran, in order; those whose results were reused are not among them."""
        return [data["node"] for kind, data in self.events if kind == "executing" and data.get("node")]

    @property
    def error(self) -> str:
        return next((data["exception_message"] for kind, data in self.events if kind == "execution_error"), "")

    @property
    def end(self) -> str:
        return self.events[-1][0]


@dataclass
class Server:
    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def run(self, prompt: dict[str, Any], watch: Callable[[str, dict[str, Any]], None] | None = None) -> Execution:
        """Queue a prompt in API format and follow it to its end; one that is refused has the answer as `history`."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, watch), 300))

    async def _run(self, prompt: dict[str, Any], watch: Callable[[str, dict[str, Any]], None] | None) -> Execution:
        import aiohttp  # one of the host's packages: without them these tests skip

        client, execution = uuid.uuid4().hex, Execution()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{self.address}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            answer = await asyncio.to_thread(self.post, "/prompt", {"prompt": prompt, "client_id": client})
            if "prompt_id" not in answer:
                return Execution(events=[("refused", {})], history=answer)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    execution.previews += int.from_bytes(message.data[:4], "big") in (1, 4)
                    continue
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") not in (None, answer["prompt_id"]):
                    continue
                execution.events.append((kind, data))
                if watch is not None:
                    await asyncio.to_thread(watch, kind, data)
                if kind in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        for _ in range(50):
            execution.history = self.get(f"/history/{answer['prompt_id']}").get(answer["prompt_id"], {})
            if execution.history:
                break
            await asyncio.sleep(0.1)
        return execution

    def kill(self) -> None:
        """The end without a farewell."""
        self.process.kill()
        self.process.wait()

    def pictures(self, execution: Execution) -> list[Path]:
        """The files that a prompt has saved."""
        outputs = execution.history["outputs"].values()
        saved = [each for output in outputs for each in output.get("images", []) if each["type"] == "output"]
        return [self.folder / "output" / each["subfolder"] / each["filename"] for each in saved]


@contextmanager
def running(checkout: Path, folder: Path, *arguments: str, pack: Path = PACK) -> Iterator[Server]:
    """A server of `checkout` with the pack and nothing else, all of whose files lie in `folder`."""
    # The front end of 0.3.64 does not know a loader that has nothing to load.
    for name in ("vae/vae-ft-mse-840000-ema-pruned.safetensors", "checkpoints/sd_xl_base_1.0.safetensors"):
        path = folder / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    put_laboratory(folder / "models")
    (folder / "input").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).parent / "graphs" / TABLE, folder / "input")
    with serving(checkout, folder, "--preview-method", "latent2rgb", *arguments, pack=pack) as (port, process):
        yield Server(port, folder, process)
