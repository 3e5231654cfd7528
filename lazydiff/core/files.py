"""Files that are either whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file to, which takes the name `path` once it is finished; until then the old file stays."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.touch()
        mode = stat.S_IMODE(unfinished.stat().st_mode)  # what the user's umask leaves
        yield unfinished
        unfinished.chmod(mode)  # some writers make a file of their own, for its owner alone
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_file(path: Path | str) -> None:
    """Errors: ValueError unless there is a file of that name; a pipe or device would be waited for without end."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character in it
        raise ValueError(f"{path}: not a file that can be read ({error})") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: it is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or device'}, not a file")
