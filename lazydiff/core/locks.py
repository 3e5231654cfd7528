"""Folders in which one run works at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Keep other runs of the same work out of a folder for as long as this process lives.

    Errors: ValueError when another one is at it there.
    """
    from filelock import FileLock, Timeout  # here, because nothing but long runs needs it

    try:
        with FileLock(folder / f"{work}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another {work} is at work in {folder}: wait for it, or choose another --output") from None
