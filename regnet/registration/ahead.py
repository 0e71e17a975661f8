"""Items read one after another while others are worked on, several at once; the results come in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)  # for threads to come; the workers have told torch otherwise
        begin: Callable[[Item], Callable[[], Result]] = partial(partial, work)
        if at_once > 1:
            if apart and can_fork():
                work = stack.enter_context(forked(work, at_once))
            begin = stack.enter_context(_threads(work, at_once))
        reader = stack.enter_context(_closing(ThreadPoolExecutor(1)))
        for read in reads:
            pending.append(partial(_result, reader.submit(_begun, begin, read)))
            if len(pending) > at_once:
                yield pending.popleft()()
        while pending:
            yield pending.popleft()()


@contextmanager
def _threads(work: Callable[[Item], Result], count: int) -> Iterator[Callable[[Item], Callable[[], Result]]]:
    with _closing(ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1))) as pool:
        yield lambda item: pool.submit(work, item).result


@contextmanager
def _closing(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """What has not begun never will once the context ends."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(begin: Callable[[Item], Callable[[], Result]], read: Callable[[], Item]) -> Callable[[], Result]:
    return begin(read())


def _result(begun: Future[Callable[[], Result]]) -> Result:
    return begun.result()()
