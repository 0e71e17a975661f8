"""Processes that are copies of this one and work for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from regnet import clib
from regnet.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

Begin = Callable[[Item], Callable[[], Result]]
"""Takes an item to work on and returns at once, with what waits for the result."""
_PR_SET_PDEATHSIG = 1
_work: Callable[[Any], Any] | None = None
"""In a copy, what it does to each item."""


def can_fork() -> bool:
    """Whether a copy of this process would be whole: on Linux, with no GPU in use, by one that may have children."""
    free = not multiprocessing.current_process().daemon
    return sys.platform == "linux" and free and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


@contextmanager
def forked(work: Callable[[Item], Result], count: int) -> Iterator[Begin[Item, Result]]:
    """So many copies, with one thread each, that do some work to whatever they are given.

    They have what the work refers to as it is now; items and results are pickled on their way. They end with the
    context, or with this process however that ends.

    Args:
        work: what is to be done to an item.
        count: of the copies.

    Yields:
        What takes an item and returns at once, with what waits for the result.

    Raises:
        InputError: where a result is waited for: a copy was killed.
    """
    copies = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin, (work, os.getpid()))
    # The first item makes all copies, here rather than in a thread beside which others hold locks.
    copies.submit(int).result()

    def begin(item: Item) -> Callable[[], Result]:
        result: Future[Result] = copies.submit(_done, item)

        def wait() -> Result:
            try:
                return result.result()
            except BrokenProcessPool as error:
                raise InputError(
                    "a process that matches windows was killed, most likely since the memory ran out; give a smaller "
                    "memory_mb, or threads=1; what is finished is kept"
                ) from error

        return wait

    try:
        yield begin
    finally:
        copies.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    """Prepare a copy."""
    global _work
    _work = work
    # Of an interruption the parent tells, in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    clib.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)


def _done(item: Any) -> Any:
    assert _work is not None
    return _work(item)
