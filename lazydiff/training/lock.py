"""One training at a time in a folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

NAME = "training.lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder; what one that was killed has left is taken over.

    Errors: ValueError when another one is at work there.
    """
    path, mine = folder / NAME, json.dumps(myself())
    if not acquire(path, mine):
        if at_work(owner := read(path)):
            raise ValueError(
                f"another training (process {owner.get('process')} on {owner.get('host')}) is at work in {folder}: "
                f"wait for it, choose another --output, or remove {path} if there is none"
            )
        path.unlink(missing_ok=True)
        if not acquire(path, mine):
            raise ValueError(f"another training has just begun in {folder}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def acquire(path: Path, content: str) -> bool:
    """Whether the file was made here and now."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def myself() -> dict[str, object]:
    process = psutil.Process()
    return {"process": process.pid, "started": process.create_time(), "host": platform.node()}


def read(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def at_work(owner: dict[str, object]) -> bool:
    """Whether a lock's owner may be alive; of one on another machine nobody can say, so it counts as alive."""
    process = owner.get("process")
    if not isinstance(process, int):
        return False  # cut off while it was written
    if owner.get("host") != platform.node():
        return True
    try:
        return psutil.Process(process).create_time() == owner.get("started")
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        return True
