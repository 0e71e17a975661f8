"""`regnet <command> key=value ...`: one thin Hydra app a command.

Exit codes: 0 done; 1 a defect of regnet; 2 bad input or configuration, in one line; 3 nothing was registered; 128 and
the signal's number if SIGINT or SIGTERM ended it.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from regnet.arguments import hydra_arguments
from regnet.config import (
    RegisterConfig,
    RunConfig,
    conf_folder,
    explain,
    fill_row,
    missing_text,
    pair_rows,
    register_schemas,
    typed,
)
from regnet.errors import ConfigError, RegnetError
from regnet.files import UNWRITABLE, read_json
from regnet.registration.options import ApplyOptions
from regnet.registration.outcomes import (
    TABLE,
    earlier_outcomes,
    gather_outcomes,
    outcomes_text,
    put_outcomes_aside,
    write_outcome,
    write_table,
)
from regnet.usage import command_help, overview

DONE, DEFECT, BAD_INPUT, ABSTAINED = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

# Keys that choose a file of `conf/`.
GROUPS = ("experiment", "model")


@dataclass(frozen=True)
class Command:
    """One command: what it is for, the schema and file of its configuration, and what it does.

    Attributes:
        help: one line.
        schema: dataclass of its settings.
        folder: below `conf/`; `register` has its own, since its key `model` is a path and no group of files.
        config: name of its file there.
        sections: sections of the schema that it reads; empty: all.
        work: does it, given the settings, and tells the exit code.
        apart: jobs of a multirun have nothing to do with each other: one that fails is told of with the others.
    """

    help: str
    schema: type
    folder: str
    config: str
    sections: tuple[str, ...]
    work: Callable[[Any], int]
    apart: bool = False


_GATHERED: list[int] = []
"""Exit codes of the runs that a callback of Hydra put together, and of that if it failed."""


class JobError(Exception):
    """A job of a multirun ended with another code than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as `kill` and schedulers send it: a command ends as it does by SIGINT."""


def main() -> int:
    """Entry point of the console script; returns the exit code."""
    # Without it Hydra prints its own many lines about an error and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = sys.argv[1:]
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(overview({name: command.help for name, command in COMMANDS.items()}))
        return DONE if arguments else BAD_INPUT
    if name == "--version":
        print(f"regnet {version('regnet')}")
        return DONE
    schema = COMMANDS[name].schema if name in COMMANDS else RunConfig
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _guarded(lambda: _command(name, rest), schema)
    except KeyboardInterrupt as error:
        how, code = ("terminated", TERMINATED) if isinstance(error, Terminated) else ("interrupted", INTERRUPTED)
        print(f"regnet: {how}; the same command goes on from what is whole", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one ends it at once
    raise Terminated


def _command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{name} is not a command; {hint}")
    if "--help" in arguments or "-h" in arguments:
        command = COMMANDS[name]
        groups = GROUPS if command.config == "run" else ()
        print(command_help(f"regnet {name} key=value ...: {command.help}", command.schema, groups, command.sections))
        return DONE
    arguments = hydra_arguments(arguments, COMMANDS[name].schema)
    if COMMANDS[name].apart and {"--multirun", "-m"} & set(arguments):
        _check_several(arguments)
    return _hydra(COMMANDS[name], arguments)


def _check_several(arguments: list[str]) -> None:
    """Refuse several processes, and pairs that have no folder to land in.

    Raises:
        ConfigError: torchrun or SLURM started some, or `output_dir` is missing.
    """
    from regnet.ranks import started

    if not any(word.startswith("output_dir=") for word in arguments):
        raise ConfigError(missing_text(["output_dir"]))
    if (count := started()) > 1:
        raise ConfigError(f"{count} processes started: of several pairs each takes one; start one, or give one pair")


def _hydra(command: Command, arguments: list[str]) -> int:
    """Compose the configuration and do the command, once or, with --multirun, for every combination."""
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        """Do the command for one configuration and keep its exit code; a failed run ends a multirun."""
        if codes and codes[-1] not in (DONE, ABSTAINED):  # Hydra would go on with the others
            return
        several = _several()
        if several and "output_dir" in config:
            config.output_dir = HydraConfig.get().runtime.output_dir
        whose = f"{config.pairs}: row {config.row}: " if several and config.get("pairs") else ""

        def work() -> int:
            fill_row(config)
            return command.work(typed(config, command.schema))

        code, message = _tried(work, command.schema)
        if message:
            print(f"regnet: {whose}{message}", file=sys.stderr)
        if several and command.apart:
            given = {name: config.get(name) for name in ("row", "fixed", "moving")}
            write_outcome(Path(config.output_dir), given, code, message)
        else:
            codes.append(code)
            if several and code not in (DONE, ABSTAINED):
                raise JobError(code)

    register_schemas()
    _GATHERED.clear()
    sys.argv = ["regnet", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder() / command.folder), config_name=command.config)(
            job
        )()
    except JobError as failure:
        return failure.code
    codes += _GATHERED
    # Of many pairs some may be left as they are.
    return next((code for code in (DEFECT, BAD_INPUT, DONE) if code in codes), ABSTAINED if codes else DONE)


def _several() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


class GatherPairs(Callback):
    """Tells of all pairs that were registered together; `conf/register/register.yaml` names it.

    What became of each is read from its folder, since a launcher may have had it registered by another process.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before the first pair."""
        put_outcomes_aside(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that started the pairs, when all have ended."""
        folder = Path(config.hydra.sweep.dir)

        def work() -> int:
            outcomes = gather_outcomes(folder)
            earlier = earlier_outcomes(folder, pair_rows(config.pairs)) if config.pairs else []
            _GATHERED.extend(outcome["code"] for outcome in outcomes)
            print(f"\n{outcomes_text(write_table(folder, outcomes + earlier))}\n\ntable: {folder / TABLE}")
            return DONE

        _gather(work, RegisterConfig)


class GatherSweep(Callback):
    """Puts the runs of `noise_sweep` together when all have ended; `conf/experiment/noise_sweep.yaml` names it."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that started the runs."""
        from regnet.training.sweep import gather_sweep

        folder = Path(config.hydra.sweep.dir)

        def work() -> int:
            gather_sweep(folder)
            print(f"\nnoise_sweep: see {folder / 'noise_sweep.md'} and {folder / 'noise_sweep.png'}")
            return DONE

        _gather(work, RunConfig)


def _gather(work: Callable[[], int], schema: type) -> None:
    """Put the runs of a multirun together; Hydra would make a warning of what fails."""
    if (code := _guarded(work, schema)) != DONE:
        _GATHERED.append(code)


def _guarded(work: Callable[[], int], schema: type) -> int:
    """Do the work; whatever goes wrong becomes one line on stderr and an exit code."""
    code, message = _tried(work, schema)
    if message:
        print(f"regnet: {message}", file=sys.stderr)
    return code


def _tried(work: Callable[[], int], schema: type) -> tuple[int, str]:
    """Do the work; tells the exit code and, in one line, what went wrong; an interruption passes."""
    try:
        return work(), ""
    except RegnetError as error:
        return BAD_INPUT, " ".join(str(error).split())
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        return BAD_INPUT, explain(error, schema)
    except BrokenPipeError:
        return _quiet(), ""
    except OSError as error:
        if error.errno in UNWRITABLE:
            return BAD_INPUT, f"{error.filename}: {error.strerror}; free some space or write to another folder"
        return DEFECT, _defect(error)
    except JobError:
        raise
    except Exception as error:
        return DEFECT, _defect(error)


def _quiet() -> int:
    # The reader of our output, `head` for one, has gone: nothing can be told to it, and that is no fault.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _defect(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="regnet-traceback-", suffix=".txt", delete=False) as stream:
        traceback.print_exception(error, file=stream)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    return f"defect of regnet ({cause}); the traceback is in {stream.name}"


def _stage(name: str) -> Callable[[RunConfig], int]:
    def work(config: RunConfig) -> int:
        from regnet.run import run_stages

        run_stages(config, [name])
        return DONE

    return work


def _run(config: RunConfig) -> int:
    from regnet.ranks import launch
    from regnet.report.tables import accuracy_text
    from regnet.run import run_stages

    run_stages(config)
    if not launch(config.fabric).main:
        return DONE
    run = Path(config.output_dir)
    if config.study != "none":
        print(f"\n{config.study}: see {run / config.study}")
        return DONE
    print(f"\n{accuracy_text(read_json(run / 'summary.json'))}\n\nreport: {run / 'report.html'}")
    return DONE


def _register(config: RegisterConfig) -> int:
    from regnet.ranks import launch
    from regnet.registration.register import finished, register
    from regnet.run import seed_everything

    share = finished(config, Path(config.output_dir)) if _several() else None
    if share is not None:
        print(f"skipped, {config.output_dir} was made with these settings", flush=True)
        return DONE if share > 0 else ABSTAINED
    seed_everything(config.seed, config.threads)
    ranks = launch(config.fabric)
    share = register(config, Path(config.output_dir), ranks)
    code = DONE if share > 0 else ABSTAINED
    if not ranks.main:
        return code
    summary = read_json(Path(config.output_dir) / "summary.json")
    for note in summary["notes"]:
        print(note)
    print(f"{summary['outcome']}; see {config.output_dir}", flush=True)
    return code


def _apply(config: ApplyOptions) -> int:
    from regnet.registration.apply import apply

    applied = apply(config)
    for note in applied.notes:
        print(note)
    print(f"{applied.outcome}; see {config.output}")
    return DONE if applied.share > 0 else ABSTAINED


COMMANDS = {
    "run": Command("all stages, or a study; each skipped when its outputs are there", RunConfig, "", "run", (), _run),
    "prepare": Command("pairs to tiles with labels", RunConfig, "", "run", ("prepare",), _stage("prepare")),
    "train": Command("tiles to a model", RunConfig, "", "run", ("model", "training"), _stage("train")),
    "similarity": Command(
        "which tiles the model takes for the same", RunConfig, "", "run", ("similarity",), _stage("similarity")
    ),
    "denoise": Command("how much label noise was averaged away", RunConfig, "", "run", ("denoise",), _stage("denoise")),
    "evaluate": Command("accuracy beside other methods", RunConfig, "", "run", ("evaluate",), _stage("evaluate")),
    "report": Command("a run folder to figures and report.html", RunConfig, "", "run", ("report",), _stage("report")),
    "register": Command("register a pair of files", RegisterConfig, "register", "register", (), _register, apart=True),
    "apply": Command("a saved displacement onto other files", ApplyOptions, "apply", "apply", (), _apply),
}


if __name__ == "__main__":
    sys.exit(main())
