"""Items read one after another while others are worked on, several at once; the results come in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def worked(reads: Iterable[Callable[[], Item]], work: Callable[[Item], Result], at_once: int = 1) -> Generator[Result]:
    """Work on what is read.

    One thread reads, since open files are not to be read by two; `at_once` threads work, and each of several keeps its
    own operations to itself, which is quicker than to share out every small one.

    Args:
        reads: one for each item; they are called in their order, the next one while items are worked on.
        work: done in the working threads.
        at_once: how many items are worked on at the same time; one more is read ahead.

    Yields:
        The results in the order of the items. What a read or work raises is raised here.
    """
    threads = torch.get_num_threads()
    initializer = (lambda: torch.set_num_threads(1)) if at_once > 1 else None
    pending: deque[Future[Result]] = deque()
    reader, workers = ThreadPoolExecutor(1), ThreadPoolExecutor(at_once, initializer=initializer)
    try:
        for read in reads:
            pending.append(workers.submit(_work_on, work, reader.submit(read)))
            if len(pending) > at_once:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for pool in (reader, workers):
            pool.shutdown(cancel_futures=True)
        if at_once > 1:
            torch.set_num_threads(threads)


def _work_on(work: Callable[[Item], Result], item: Future[Item]) -> Result:
    return work(item.result())
