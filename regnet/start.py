"""Entry point of the console script: what has to be set before torch is loaded, then the command."""

from __future__ import annotations

import os
import sys

from regnet.heap import keep_freed


def main() -> int:
    """Prepare the process and run the command; returns the exit code."""
    # Threads that spin while they wait make two busy processes several times slower than one after the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        # Each time that a bar is drawn is a line of a log; tqdm looks here when it is imported.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    keep_freed()
    from regnet.cli import main as command

    return command()
