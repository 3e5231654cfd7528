"""Processes that work on shards side by side, or one thread that does it alone; they end when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

POLL = 0.2  # seconds between two looks at how far the workers are


class Signals(NamedTuple):
    """What workers and their parent tell each other while they work."""

    done: Any  # a shared integer: pictures
    stop: Any  # a shared event


class Stopped(Exception):
    """Work that was given up because others failed, or somebody pressed Ctrl-C."""


_signals: Signals  # of this process, be it a worker or the parent of a single thread


def advance() -> None:
    """Count one more picture. Errors: `Stopped` when no more are wanted."""
    if _signals.stop.is_set():
        raise Stopped
    with _signals.done.get_lock():
        _signals.done.value += 1


class Crew:
    """Workers, to which functions and what they take are sent."""

    def __init__(self, executor: Executor, signals: Signals):
        self.executor, self.signals = executor, signals

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What one worker answers."""
        return self.run(function, [arguments])[0]

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        progress: Callable[[int], object] = lambda done: None,
    ) -> list[Any]:
        """What workers answer to each task, done in no certain order; the first error of any of them ends it.

        progress: is told how many pictures are done, again and again
        """
        with deaf_to_interrupts():  # which new workers are from their first moment
            futures: list[Future[Any]] = [self.executor.submit(function, *task) for task in tasks]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL, FIRST_EXCEPTION)
            progress(self.signals.done.value)
            for future in done:
                future.result()
        return [future.result() for future in futures]


@contextmanager
def workers(processes: int) -> Iterator[Crew]:
    """So many processes, or for one a thread of this process. They have ended when this has.

    Errors: ChildProcessError when one was ended from outside, as systems without memory do.
    """
    context = multiprocessing.get_context("spawn")
    signals = Signals(context.Value("Q"), context.Event())
    if processes == 1:
        executor: Executor = ThreadPoolExecutor(1, initializer=_begin, initargs=(signals,))
    else:
        threads = max(torch.get_num_threads() // processes, 1)
        executor = ProcessPoolExecutor(processes, context, _begin_process, (signals, threads))
    try:
        yield Crew(executor, signals)
    except BrokenProcessPool as error:
        reason = "a worker was ended from outside, as happens without memory: fewer --processes need less"
        raise ChildProcessError(f"{reason}; what is finished stays") from error
    finally:
        signals.stop.set()
        executor.shutdown(cancel_futures=True)


def _begin(signals: Signals) -> None:
    global _signals
    _signals = signals


def _begin_process(signals: Signals, threads: int) -> None:
    _begin(signals)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C is passed over in the meantime, by this process and by those that it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
