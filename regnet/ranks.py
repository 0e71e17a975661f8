"""Several processes that share the work of one command, by Lightning Fabric.

`torchrun` or SLURM starts them; `fabric.devices` and `fabric.num_nodes` say how many there are. Every process, a rank,
works on its own share and writes its own files; sums are added up over all ranks.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from regnet.errors import ConfigError, InputError
from regnet.options import option

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

# Ranks wait for each other at most this long: the first one alone prepares tiles, and evaluates.
_PATIENCE = timedelta(days=7)


class OtherRankError(InputError):
    """Another of the processes that share the work failed."""

    def __init__(self) -> None:
        super().__init__("another of the processes failed; its own message says why")


@dataclass(frozen=True)
class FabricOptions:
    """How many processes share the work, and on what."""

    devices: int = option(1, "processes on each node, started by torchrun or SLURM", low=1)
    num_nodes: int = option(1, "nodes", low=1)
    accelerator: str = option("cpu", "where networks run", choices=["cpu", "cuda"])


class Ranks:
    """This process among those that share the work; without arguments it is alone.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: where this process runs networks.
    """

    def __init__(self, options: FabricOptions | None = None) -> None:
        import torch

        options = options or FabricOptions()
        if options.accelerator == "cuda":
            # Without it the same product need not give the same bits; it is read when the first product is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.rank, self.size, self.device = 0, 1, torch.device(options.accelerator)
        self._fabric = None
        if options.devices * options.num_nodes > 1:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy

            self._fabric = Fabric(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.num_nodes,
                strategy=DDPStrategy(timeout=_PATIENCE),
            )
            self._fabric.launch()
            # A group left to the interpreter's end may end the process with SIGABRT: gloo's threads still hold tensors.
            atexit.register(torch.distributed.destroy_process_group)
            self.rank, self.size = self._fabric.global_rank, self._fabric.world_size
            self.device = self._fabric.device

    @property
    def main(self) -> bool:
        """Whether this is the rank that does what is done once: tables, figures, messages."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of the items: every `size`-th."""
        return items[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank.

        Raises:
            InputError: another rank has ended, since it failed.
        """
        if self._fabric is None:
            return values
        try:
            total: Tensor = self._fabric.all_reduce(values.contiguous(), reduce_op="sum")  # type: ignore[assignment]
        except RuntimeError as error:  # of gloo, whose connection to a process that has ended is closed
            raise OtherRankError from error
        return total

    def told(self, value: Item) -> Item:
        """What the main rank has, on every rank; it is pickled."""
        self._meet()
        return value if self._fabric is None else self._fabric.broadcast(value)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._meet()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others, who wait for this rank in `told`, in `barrier` or at the end of this, if it fails here.

        Raises:
            InputError: another rank failed.
        """
        try:
            yield
        except OtherRankError:
            raise
        except Exception:
            with suppress(OtherRankError):
                self._meet(failed=True)
            raise
        self._meet()

    def _meet(self, failed: bool = False) -> None:
        """Wait until all ranks are here, and learn whether one of them has failed."""
        import torch

        if float(self.sum(torch.tensor([float(failed)], device=self.device))):
            raise OtherRankError


@cache
def launch(options: FabricOptions) -> Ranks:
    """Join the other ranks; the same settings give the same ranks again.

    Raises:
        ConfigError: there are other processes than the settings say, or no such device.
    """
    import torch

    count, wanted = started(), options.devices * options.num_nodes
    if count != wanted:
        nodes = f"--nnodes {options.num_nodes} " if options.num_nodes > 1 else ""
        remedy = (
            f"start it by `torchrun {nodes}--nproc-per-node {options.devices} --no-python regnet ...` or by srun"
            if count == 1
            else f"make their product {count}"
        )
        raise ConfigError(
            f"fabric.devices={options.devices} x fabric.num_nodes={options.num_nodes}: "
            f"{count} process{'es' if count > 1 else ''} started; {remedy}"
        )
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("fabric.accelerator=cuda: torch sees no such device; set fabric.accelerator=cpu")
    return Ranks(options)


def started() -> int:
    """How many processes torchrun or SLURM started."""
    if not {"WORLD_SIZE", "SLURM_NTASKS"} & os.environ.keys():
        return 1
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            try:
                return environment().world_size()
            except RuntimeError as error:  # of an allocation that it does not know how to share out
                raise ConfigError(f"SLURM: {' '.join(str(error).split())}") from error
    return 1
