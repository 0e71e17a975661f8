"""Items read one after another while others are worked on: by the caller, by threads, and by processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from regnet.errors import InputError
from regnet.registration.ahead import worked
from regnet.registration.forked import can_fork

WAYS = [(1, False), (1, True), (3, False), (3, True)]
needs_fork = pytest.mark.skipif(not can_fork(), reason="no process can be forked here")


def told(item):
    """Of a worker: what it was given, which process and how many threads of torch it has."""
    return item, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize(("at_once", "apart"), WAYS)
def test_results_come_in_order_from_as_many_workers_as_asked_for_with_a_thread_each(at_once, apart):
    """Reads never meet, and so many items as asked for are worked on at the same time."""
    busy, read = threading.Lock(), []
    gate = multiprocessing.get_context("fork").Barrier(at_once) if apart and can_fork() else threading.Barrier(at_once)

    def take(item):
        assert busy.acquire(blocking=False)
        time.sleep(0.001)
        read.append(item)
        busy.release()
        return np.full(3, item)

    def work(item):
        gate.wait(30)
        return told(item)

    before = torch.get_num_threads()
    results = list(worked([partial(take, item) for item in range(12)], work, at_once, apart))
    assert read == [int(item[0]) for item, _, _ in results] == list(range(12))
    assert {threads for _, _, threads in results} == {before if at_once == 1 else 1}
    processes = {process for _, process, _ in results}
    assert len(processes) == (at_once if apart and can_fork() else 1)
    assert (os.getpid() in processes) == (at_once == 1 or not (apart and can_fork()))
    assert torch.get_num_threads() == before
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("at_once", "apart"), WAYS)
@pytest.mark.parametrize("where", ["read", "work"])
def test_what_is_raised_comes_out_and_no_worker_is_left(at_once, apart, where):
    def fail(item=None):
        raise InputError("x.tif: cut short")

    results = worked([fail if where == "read" else int] * 5, fail, at_once, apart)
    with pytest.raises(InputError, match=r"x\.tif: cut short"):
        list(results)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("at_once", "apart"), WAYS)
def test_no_more_is_read_than_is_worked_on_and_nothing_goes_on_once_it_is_closed(at_once, apart):
    read = []

    def take(item):
        read.append(item)
        return item

    with closing(worked([partial(take, item) for item in range(50)], told, at_once, apart)) as results:
        assert next(results)[0] == 0
    assert len(read) <= at_once + 1
    assert not multiprocessing.active_children()


@needs_fork
def test_a_killed_process_is_told_of():
    def work(item):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="was killed, most likely since the memory ran out; give a smaller memory_mb"):
        list(worked([int] * 3, work, 2, apart=True))


SCRIPT = """
import os, time
from regnet.registration.ahead import worked

def work(item):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(120)

list(worked([int] * 2, work, 2, apart=True))
"""


@needs_fork
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_they_work_for(sent):
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(sent)
    parent.wait(30)
    for _ in range(100):
        if not any(map(runs, workers)):
            return
        time.sleep(0.1)
    pytest.fail("a worker is left")


INTERRUPTED = """
import os, signal, threading, time
from contextlib import closing
from regnet.registration.ahead import worked

signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt():
    time.sleep(1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

threading.Thread(target=interrupt, daemon=True).start()
try:
    with closing(worked([int] * 50, lambda item: time.sleep(0.7), 2, apart=True)) as results:
        list(results)
except KeyboardInterrupt:
    print("interrupted")
"""


@needs_fork
def test_an_interruption_while_another_is_cleared_up_after_leaves_nothing_waiting():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted\n"


def runs(process):
    """Whether a process is there and not just waits to be cleared away."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _told_in_a_daemon(queue):
    queue.put([process for _, process, _ in worked([int] * 2, told, 2, apart=True)] + [os.getpid()])


@needs_fork
def test_a_process_that_may_have_no_children_works_with_threads():
    queue = multiprocessing.get_context("fork").Queue()
    daemon = multiprocessing.get_context("fork").Process(target=_told_in_a_daemon, args=(queue,), daemon=True)
    daemon.start()
    assert len(set(queue.get(timeout=60))) == 1
    daemon.join(30)
