"""`regnet <command> key=value ...`: one thin Hydra app a command.

Exit codes: 0 done; 1 a defect of regnet; 2 bad input or configuration, in one line; 3 nothing was registered.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
import tempfile
import textwrap
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
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from regnet.config import (
    Key,
    RegisterConfig,
    RunConfig,
    conf_folder,
    explain,
    fill_row,
    keys,
    register_schemas,
    typed,
)
from regnet.errors import ConfigError, RegnetError
from regnet.files import read_json
from regnet.registration.options import ApplyOptions
from regnet.registration.pairs import read_pairs

DONE, DEFECT, BAD_INPUT, ABSTAINED, INTERRUPTED = 0, 1, 2, 3, 130

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

# Keys that choose a file of `conf/`.
GROUPS = ("experiment", "model")

# Hydra's own flags that are passed on; those with a value take it from the next word.
FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}


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
    """

    help: str
    schema: type
    folder: str
    config: str
    sections: tuple[str, ...]
    work: Callable[[Any], int]


class JobError(Exception):
    """A job of a multirun ended with another code than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> int:
    """Entry point of the console script; returns the exit code."""
    # Without it Hydra prints its own many lines about an error and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = sys.argv[1:]
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(_overview())
        return DONE if arguments else BAD_INPUT
    if name == "--version":
        print(f"regnet {version('regnet')}")
        return DONE
    schema = COMMANDS[name].schema if name in COMMANDS else RunConfig
    return _guarded(lambda: _command(name, rest), schema)


def _command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{name} is not a command; {hint}")
    if "--help" in arguments or "-h" in arguments:
        print(_command_help(name, COMMANDS[name]))
        return DONE
    return _hydra(COMMANDS[name], _hydra_arguments(_every_row(arguments)))


def _hydra(command: Command, arguments: list[str]) -> int:
    """Compose the configuration and do the command, once or, with --multirun, for every combination."""
    codes = []

    def job(config: DictConfig) -> None:
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        if several and "output_dir" in config:
            config.output_dir = HydraConfig.get().runtime.output_dir

        def work() -> int:
            fill_row(config)
            return command.work(typed(config, command.schema))

        code = _guarded(work, command.schema)
        if several and code not in (DONE, ABSTAINED):
            raise JobError(code)
        codes.append(code)

    register_schemas()
    sys.argv = ["regnet", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder() / command.folder), config_name=command.config)(
            job
        )()
    except JobError as failure:
        return failure.code
    # Of many pairs some may be left as they are.
    return ABSTAINED if set(codes) == {ABSTAINED} else max((code for code in codes if code != ABSTAINED), default=DONE)


def _hydra_arguments(arguments: list[str]) -> list[str]:
    """Put Hydra's flags after the overrides, wherever the user wrote them.

    Raises:
        ConfigError: a flag is not known.
    """
    flags, overrides = [], []
    words = iter(arguments)
    for word in words:
        bare = word.partition("=")[0]
        if not word.startswith("-"):
            overrides.append(_override(word))
        elif bare in FLAGS:
            flags.append(word)
        elif bare in FLAGS_WITH_VALUE:
            flags += [word] if "=" in word else [word, next(words, "")]
        else:
            raise ConfigError(f"{word} is not a flag; settings are given as key=value, see `regnet <command> --help`")
    return overrides + flags


def _every_row(arguments: list[str]) -> list[str]:
    """Make a multirun over its rows of a CSV of pairs."""
    named = dict(word.partition("=")[::2] for word in arguments if not word.startswith("-"))
    if "pairs" not in named or "row" in named:
        return arguments
    rows = range(len(read_pairs(named["pairs"])))
    return [*arguments, f"row={','.join(map(str, rows))}", "--multirun"]


def _override(word: str) -> str:
    """Refuse Hydra's additions and deletions, since the schema is closed, and quote the path of a file that exists."""
    if word.startswith(("+", "~")) and not word.lstrip("+~").startswith("hydra"):
        raise ConfigError(f"{word}: keys can neither be added nor deleted; write key=value")
    key, _, value = word.partition("=")
    if Path(value).exists() and not re.fullmatch(r"[\w./\\-]*", value):
        return f"{key}='" + value.replace("'", "\\'") + "'"
    return word


def _guarded(work: Callable[[], int], schema: type) -> int:
    """Do the work; whatever goes wrong becomes one line on stderr and an exit code."""
    try:
        return work()
    except RegnetError as error:
        return _complain(" ".join(str(error).split()))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        return _complain(explain(error, schema))
    except KeyboardInterrupt:
        print("regnet: interrupted; the same command goes on from what is whole", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return _quiet()
    except OSError as error:
        if error.errno in UNWRITABLE:
            return _complain(f"{error.filename}: {error.strerror}; free some space or choose another output_dir")
        return _defect(error)
    except JobError:
        raise
    except Exception as error:
        return _defect(error)


def _quiet() -> int:
    # The reader of our output, `head` for one, has gone: nothing can be told to it, and that is no fault.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _complain(message: str) -> int:
    print(f"regnet: {message}", file=sys.stderr)
    return BAD_INPUT


def _defect(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="regnet-traceback-", suffix=".txt", delete=False) as stream:
        traceback.print_exception(error, file=stream)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"regnet: defect of regnet ({cause}); the traceback is in {stream.name}", file=sys.stderr)
    return DEFECT


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
    from regnet.registration.register import register
    from regnet.run import seed_everything

    seed_everything(config.seed, config.threads)
    share = register(config, Path(config.output_dir))
    print(f"registered {share:.0%} of the area; see {config.output_dir}")
    return DONE if share > 0 else ABSTAINED


def _apply(config: ApplyOptions) -> int:
    from regnet.registration.apply import apply

    applied = apply(config)
    for note in applied.notes:
        print(note)
    what = f"{applied.share:.0%} of the area" if applied.features is None else str(applied.features)
    print(f"moved {what}; see {config.output}")
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
    "register": Command("register a pair of files", RegisterConfig, "register", "register", (), _register),
    "apply": Command("a saved displacement onto other files", ApplyOptions, "apply", "apply", (), _apply),
}


def _overview() -> str:
    lines = ["regnet <command> key=value ...", ""]
    lines += [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    lines += ["", "`regnet <command> --help` lists its keys with their units and defaults."]
    return "\n".join(lines)


def _command_help(name: str, command: Command) -> str:
    lines = [f"regnet {name} key=value ...: {command.help}", ""]
    for group in GROUPS if command.config == "run" else ():
        files = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        lines.append(f"{group}={{{','.join(files)}}}: one of the files in conf/{group}")
    lines += ["--multirun key=a,b,c: one run for every combination, each in its own folder of output_dir", ""]
    for key in keys(command.schema):
        section = key.path.partition(".")[0]
        if not command.sections or "." not in key.path or section in (*command.sections, "data", "fabric"):
            lines += _key_help(key)
    return "\n".join(lines)


def _key_help(key: Key) -> list[str]:
    facts = [key.kind, f"default {key.default}" if key.default != "required" else "required"]
    if key.metadata.get("unit"):
        facts.insert(1, f"in {key.metadata['unit']}")
    low, high = key.metadata.get("low"), key.metadata.get("high")
    if low is not None or high is not None:
        facts.append(f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}")
    if key.metadata.get("choices"):
        facts.append(f"one of {', '.join(key.metadata['choices'])}")
    width = shutil.get_terminal_size((110, 0)).columns
    text = f"{key.metadata.get('help', '')} [{'; '.join(facts)}]"
    return [f"  {key.path}", *textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")]


if __name__ == "__main__":
    sys.exit(main())
