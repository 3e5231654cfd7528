"""Preparation of shards: a source's units, one shard each, by many processes, and on from where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.checks import shortened
from ..core.files import whole_file
from ..core.locks import alone
from .entities import Refusal
from .report import Report
from .samples import ModelFolders, Preparation, Prepared, Preparer
from .shards import write_shard
from .sources import Source, SourceItem
from .workers import advance, workers

SETTINGS, PARTS = "prepare.json", "parts"  # in the output folder: what made its shards, and a report on each
FORMAT = 1
TWICE = "its name is there twice"


def prepare_shards(
    source: Source,
    output: Path,
    settings: Preparation,
    folders: ModelFolders = ModelFolders(),  # noqa: B008 (it is frozen)
    processes: int | None = None,
) -> Report:
    """Write the shards 00000.tar, 00001.tar … and a report.json and refused.csv into a folder; of a unit without any
    sample there is no shard.

    The same source, settings and models make the same bytes, however many processes share the work (as long as the
    models themselves compute the same), and however often it was stopped: what is finished is not made again.
    processes: each has the models in memory; one with any model if not given, else as many as there are cores
    Errors: ValueError for a folder with shards of other settings, or with another preparation at work; for models that
    cannot be read. OSError, which names the file, for what cannot be written.
    """
    settings.check()
    if processes is not None and processes < 1:
        raise ValueError(f"{processes} processes: choose at least 1")
    processes = processes or (1 if folders.any else available_cores())
    (output / PARTS).mkdir(parents=True, exist_ok=True)
    with alone(output, "preparation"):
        try:
            with workers(processes) as crew:
                models = crew.ask(models_of, settings, folders)
                keep_settings(output, {"source": source.identity, **asdict(settings), **models})
                remove_unfinished(output)
                units = source.units(settings.shard_size)
                finished = finished_reports(output, len(units))
                tasks = [(settings, folders, output, i, unit) for i, unit in enumerate(units) if i not in finished]
                before = Report.total([*finished.values()]).pictures
                with tqdm(total=source.count, initial=before, unit=" pictures") as bar:
                    crew.run(make_shard, tasks, lambda done: bar.update(before + done - bar.n))
        finally:
            preparer_of.cache_clear()
            remove_unfinished(output)
        report = Report.total([*finished_reports(output, len(units)).values()])
        report.summarise(output)
        return report


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In the output folder


def shard_path(output: Path, number: int) -> Path:
    return output / f"{number:05d}.tar"


def finished_reports(output: Path, units: int) -> dict[int, Report]:
    """What became of the units whose shards are there in full."""
    found = {}
    for number in range(units):
        path = shard_path(output, number)
        report = Report.read(output / PARTS / f"{path.stem}.json")
        size = path.stat().st_size if path.is_file() else 0
        if report is not None and report.size == size:
            found[number] = report
    return found


def keep_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write down with what a folder is prepared. Errors: ValueError when it was begun with anything else."""
    path, settings = output / SETTINGS, {"format": FORMAT, **settings}
    if not path.exists():
        if any(output.glob("*.tar")):
            raise ValueError(f"{output} has shards that were made by something else: choose another --output")
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: choose another --output") from error
    for name, now in settings.items():
        if before.get(name) != now:
            there, here = shortened(before.get(name)), shortened(now)
            raise ValueError(
                f"{output} has shards of another preparation ({name} was {there} and is now {here}): repeat it as it "
                "was, or choose another --output"
            )


def remove_unfinished(output: Path) -> None:
    """Remove what runs that were killed have left behind of files that were not finished."""
    for path in chain(output.glob(".*.tar.*"), output.glob(".*.json.*"), (output / PARTS).glob(".*.json.*")):
        path.unlink(missing_ok=True)


# In the workers


@lru_cache(maxsize=1)
def preparer_of(settings: Preparation, folders: ModelFolders) -> Preparer:
    """This process's own, whose models are read once."""
    return Preparer(settings, folders)


def models_of(settings: Preparation, folders: ModelFolders) -> dict[str, Any]:
    return preparer_of(settings, folders).origins


def make_shard(
    settings: Preparation, folders: ModelFolders, output: Path, number: int, unit: Iterable[SourceItem]
) -> None:
    """Write the shard of one unit, and then a report on it, by which it is known to be finished."""
    preparer, path, report = preparer_of(settings, folders), shard_path(output, number), Report()
    samples = prepared_samples(preparer, unit, report)
    first = next(samples, None)
    try:
        if first is not None:
            with write_shard(path, preparer.header) as shard:
                for sample in chain([first], samples):
                    shard.add(sample.key, sample.members)
            report.size = path.stat().st_size
        report.write(output / PARTS / f"{path.stem}.json")
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): what is finished stays, repeat the command") from error


def prepared_samples(preparer: Preparer, unit: Iterable[SourceItem], report: Report) -> Iterator[Prepared]:
    """The samples of a unit's pictures, whose refusals and numbers go into the report."""
    keys = set()
    for item in unit:
        advance()
        report.pictures += 1
        try:
            if item.key in keys:
                raise Refusal(TWICE)
            keys.add(item.key)
            samples = preparer.samples(item)
        except Refusal as refusal:
            report.refuse(item.key, refusal)
            continue
        for sample in samples:
            report.samples += 1
            report.holes += sample.holes
            report.cut += sample.cut
            yield sample
