"""Items read one after another while others are worked on, several at once; the results come in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import torch

from regnet.registration.forked import can_fork, forked

Item = TypeVar("Item")
Result = TypeVar("Result")


def worked(
    reads: Iterable[Callable[[], Item]], work: Callable[[Item], Result], at_once: int = 1, apart: bool = False
) -> Generator[Result]:
    """Work on what is read.

    One thread reads, since open files are not to be read by two. A single item at a time is worked on by the caller,
    several by a thread or process each, which is quicker than to share out every small operation.

    Args:
        reads: one for each item; they are called in their order, the next one while items are worked on.
        work: done to each item.
        at_once: how many items are worked on at the same time; one more is read ahead.
        apart: whether processes work where there can be some. Work that is made of many small operations goes no
            quicker with two threads than with one, since each waits for the interpreter that the other holds.

    Yields:
        The results in the order of the items. What a read or work raises is raised here.

    Raises:
        InputError: a process was killed, as by a system that is out of memory.
    """
    threads = torch.get_num_threads()
    pending: deque[Callable[[], Result]] = deque()
    with forked(work, at_once) if apart and at_once > 1 and can_fork() else nullcontext(work) as done:
        reader, workers = (
            ThreadPoolExecutor(1),
            ThreadPoolExecutor(at_once, initializer=partial(torch.set_num_threads, 1)),
        )
        try:
            for read in reads:
                later = partial(_work_on, done, reader.submit(read))
                pending.append(workers.submit(later).result if at_once > 1 else later)
                if len(pending) > at_once:
                    yield pending.popleft()()
            while pending:
                yield pending.popleft()()
        finally:
            for pool in (reader, workers):
                pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # for threads to come; the workers have told torch otherwise


def _work_on(work: Callable[[Item], Result], item: Future[Item]) -> Result:
    return work(item.result())
