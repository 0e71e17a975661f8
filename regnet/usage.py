"""The text of `--help`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from regnet.config import Key, conf_folder, keys


def overview(commands: Mapping[str, str]) -> str:
    """What `regnet --help` prints.

    Args:
        commands: names, and what each does in one line.
    """
    lines = ["regnet <command> key=value ...", ""]
    lines += [f"  {name:<12}{purpose}" for name, purpose in commands.items()]
    lines += ["", "`regnet <command> --help` lists its keys with their units and defaults."]
    return "\n".join(lines)


def command_help(headline: str, schema: type, groups: Sequence[str], sections: Sequence[str]) -> str:
    """What `regnet <command> --help` prints: every key with its unit, range, default and meaning.

    Args:
        headline: the command and what it does.
        schema: of its settings.
        groups: keys that choose a file of `conf/`.
        sections: sections of the schema that it reads; empty: all.
    """
    lines = [headline, ""]
    for group in groups:
        files = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        lines.append(f"{group}={{{','.join(files)}}}: one of the files in conf/{group}")
    known = list(keys(schema))
    folder = ", each in its own folder of output_dir" if "output_dir" in [key.path for key in known] else ""
    lines += [f"--multirun key=a,b,c: one run for every combination{folder}", ""]
    for key in known:
        section = key.path.partition(".")[0]
        if not sections or "." not in key.path or section in (*sections, "data", "fabric"):
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
