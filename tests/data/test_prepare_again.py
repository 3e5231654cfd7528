"""Preparations that are stopped, repeated or made by several processes: the same bytes, and nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data.pictures import save_picture
from data.prepared import SMALLISH, prepare, tars

from lazydiff.cli import main
from lazydiff.core.locks import alone
from lazydiff.data import shards
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import ModelFolders, Preparer
from lazydiff.data.sources import FolderSource

ROOT = Path(__file__).parents[2]


def test_two_processes_make_the_same_shards(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    """Latents included: this process and each of the two compute with one thread."""
    vae = ModelFolders(vae=folders.vae)
    one = prepare(FolderSource(pictures), tmp_path / "one", SMALLISH, vae)
    two = prepare_shards(FolderSource(pictures), tmp_path / "two", SMALLISH, vae, processes=2)
    assert tars(tmp_path / "one") == tars(tmp_path / "two") and len(tars(tmp_path / "one")) == 3
    assert one == two


def test_finished_shards_are_not_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = prepare(FolderSource(pictures), out, SMALLISH)
    whole, made = tars(out), []
    (out / "00001.tar").write_bytes((out / "00001.tar").read_bytes()[:1000])
    (out / "parts" / "00002.json").unlink()
    before = Preparer.samples
    monkeypatch.setattr(Preparer, "samples", lambda self, item: [made.append(item.key), before(self, item)][1])
    assert prepare(FolderSource(pictures), out, SMALLISH) == report
    last = [item.key for unit in FolderSource(pictures).units(SMALLISH.shard_size)[1:] for item in unit]
    assert made == last and len(made) == 3 and tars(out) == whole


SCENES = ("--scenes", 600, "--shard-size", 50)  # half a second of work each, so that it can be stopped between them


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["prepare", *map(str, SCENES), "--processes", "1", "--output", str(out)]) == 0
    return out


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_it_ends_with_the_same_bytes(
    how: signal.Signals, unbroken: Path, tmp_path: Path
) -> None:
    for attempt in range(5):  # on a busy machine it may be through before the signal comes
        out = tmp_path / str(attempt)
        status, told = stopped(how, out)
        made, whole = tars(out), tars(unbroken)
        assert made.items() <= whole.items()
        if len(made) < len(whole):
            break
    else:
        pytest.fail("it was never stopped in the middle")
    if how == signal.SIGINT:
        assert status == 130 and b"Traceback" not in told and b"stopped" in told
        assert not list(out.glob(".*.tar.*"))
    assert main(["prepare", *map(str, SCENES), "--processes", "1", "--output", str(out)]) == 0
    assert tars(out) == whole and not list(out.glob(".*.tar.*"))
    assert (out / "report.json").read_bytes() == (unbroken / "report.json").read_bytes()


def stopped(how: signal.Signals, out: Path) -> tuple[int, bytes]:
    """Status and messages of a preparation that gets a signal when its first shard is there."""
    command = [sys.executable, "-m", "lazydiff", "prepare", *map(str, SCENES), "--processes", "2", "--output", str(out)]

    def heed() -> None:
        """Where the tests run in the background of a script, they and all that they start ignore it."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed)
    wait_for(lambda: any(out.glob("*.tar")), process)
    os.kill(process.pid, how) if how == signal.SIGKILL else os.killpg(process.pid, how)
    _, told = process.communicate(timeout=60)  # its workers hold the pipe: they have ended too
    return process.returncode, told


def wait_for(found: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not found():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)


def test_what_is_prepared_with_anything_else_is_refused(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    out, source = tmp_path / "out", FolderSource(pictures)
    prepare(source, out, SMALLISH)
    before = tars(out)
    for settings, models, word in (
        (replace(SMALLISH, size=24), ModelFolders(), "size was 32 and is now 24"),
        (replace(SMALLISH, seed=1), ModelFolders(), "seed"),
        (SMALLISH, ModelFolders(vae=folders.vae), "VAE"),
        (SMALLISH, ModelFolders(text_encoder=folders.text_encoder), "text encoder"),
    ):
        with pytest.raises(ValueError, match=word):
            prepare(source, out, settings, models)
    save_picture(pictures, "another", 8)
    with pytest.raises(ValueError, match="source was folder"):
        prepare(FolderSource(pictures), out, SMALLISH)
    assert tars(out) == before
    (out / "prepare.json").unlink()
    with pytest.raises(ValueError, match="made by something else"):
        prepare(source, out, SMALLISH)


def test_two_preparations_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    with alone(tmp_path, "preparation"), pytest.raises(ValueError, match="another preparation is at work"):
        prepare(FolderSource(pictures), tmp_path, SMALLISH)


@pytest.mark.parametrize("number", range(1, 8, 2))
def test_a_full_disk_leaves_nothing_that_counts_as_done(
    number: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at one of the first writes."""
    out, whole, before, count = tmp_path / "out", tmp_path / "whole", shards.ShardWriter.add, 0

    def full(self: shards.ShardWriter, *sample: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        before(self, *sample)

    arguments = ["prepare", "--images", str(pictures), "--size", "32", "--shard-size", "2", "--processes", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", full)
        assert main([*arguments, "--output", str(out)]) == (2 if number <= 5 else 0)
    if number <= 5:
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and "cannot be written (No space left on device)" in line
        assert f"{(number - 1) // 2:05d}.tar" not in tars(out) and not list(out.glob(".*.tar.*"))
    made = tars(out)
    assert main([*arguments, "--output", str(out)]) == main([*arguments, "--output", str(whole)]) == 0
    assert tars(out) == tars(whole) == {**tars(whole), **made}
