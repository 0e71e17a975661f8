"""Processes that are copies of this one and work for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from regnet import clib
from regnet.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1


def can_fork() -> bool:
    """Whether a copy of this process would be whole: on Linux, with no GPU in use, by one that may have children."""
    free = not multiprocessing.current_process().daemon
    return sys.platform == "linux" and free and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


@contextmanager
def forked(work: Callable[[Item], Result], count: int) -> Iterator[Callable[[Item], Result]]:
    """Have some work done by copies of this process, with one thread each.

    They have what the work refers to as it is now; items and results are pickled on their way. They end with the
    context, in the middle of their work if need be, or with this process however that ends.

    Args:
        work: what is to be done to an item.
        count: of the copies.

    Yields:
        The work, to be called by so many threads at a time. What it raises is raised there.

    Raises:
        InputError: by the work: a copy was killed.
    """
    context, parent = multiprocessing.get_context("fork"), os.getpid()
    free: SimpleQueue[Connection] = SimpleQueue()
    copies = []

    def elsewhere(item: Item) -> Result:
        copy = free.get()
        try:
            copy.send(item)
            done, result = copy.recv()
        except (EOFError, ConnectionError) as error:
            raise InputError(
                "a process that matches windows was killed, most likely since the memory ran out; give a smaller "
                "memory_mb, or threads=1; what is finished is kept"
            ) from error
        finally:
            free.put(copy)
        if not done:
            raise result
        return result  # type: ignore[no-any-return]

    try:
        for _ in range(count):
            here, there = context.Pipe()
            copies.append(context.Process(target=_serve, args=(work, there, parent), daemon=True))
            copies[-1].start()
            there.close()  # or the end of that copy would not be noticed
            free.put(here)
        yield elsewhere
    finally:
        for process in copies:
            process.kill()
        for process in copies:
            process.join()


def _serve(work: Callable[[Any], Any], orders: Connection, parent: int) -> None:
    """In a copy: do the work to one item after another."""
    # Of an interruption the parent tells, in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    clib.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    torch.set_num_threads(1)
    while True:
        item = orders.recv()
        try:
            answer = True, work(item)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = False, error
        orders.send(answer)
