"""The configuration: the rooms' options composed to one schema a command, which Hydra fills from `conf/`.

Typed schemas refuse a misspelt key or a value of the wrong type at once; `explain` says so in one line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from regnet.denoising.options import DenoiseOptions, DenoisingValidationOptions
from regnet.errors import ConfigError, InputError
from regnet.evaluation.options import EvaluateOptions
from regnet.models.options import ModelOptions
from regnet.options import check_options, option
from regnet.ranks import FabricOptions
from regnet.registration.options import ApplyOptions, RegisterOptions
from regnet.registration.pairs import read_pairs
from regnet.report.options import ReportOptions
from regnet.similarity.options import PaperToyOptions, SimilarityOptions
from regnet.tiles.options import PrepareOptions
from regnet.training.options import EnforcedSimilarityOptions, TrainingOptions

Config = TypeVar("Config")

PACKAGE = Path(__file__).resolve().parent


def conf_folder() -> Path:
    """Folder of the YAML files: inside an installed package, beside the package in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def default_data_root() -> str:
    """Folder of the data sets: REGNET_DATA, else `../shared/data` seen from the checkout or the current folder."""
    start = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()
    return os.environ.get("REGNET_DATA") or str(start.parent / "shared" / "data")


def default_cache() -> str:
    """Folder of what is fetched once: REGNET_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.environ.get("REGNET_CACHE") or str(Path(home) / "regnet")


@dataclass(frozen=True)
class DataOptions:
    """Where data lie."""

    root: str = option(default_data_root(), "folder of the data sets (environment variable REGNET_DATA)")
    cache: str = option(default_cache(), "folder of fetched samples (environment variable REGNET_CACHE)")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every command takes."""

    output_dir: str = option(help="folder that the outputs land in")
    seed: int = option(0, "seed of everything random but the labels' noise (prepare.noise.seed)", low=0)
    threads: int = option(0, "processor threads to use; 0: all, or as OMP_NUM_THREADS says", low=0, high=1024)
    data: DataOptions = option(DataOptions(), "where data lie")


@dataclass(frozen=True, kw_only=True)
class RunConfig(CommonConfig):
    """Settings of `run`, of its stages, and of the studies that it runs instead of them."""

    fabric: FabricOptions = option(FabricOptions(), "processes that share the work")
    study: str = option(
        "none",
        "what `run` does instead of all stages",
        choices=["none", "paper_toy", "denoising_validation", "noise_sweep", "paper_enforced_similarity"],
    )
    prepare: PrepareOptions = option(PrepareOptions(), "tiles and labels")
    model: ModelOptions = option(ModelOptions(), "network")
    training: TrainingOptions = option(TrainingOptions(), "training")
    similarity: SimilarityOptions = option(SimilarityOptions(), "which tiles the network takes for the same")
    denoise: DenoiseOptions = option(DenoiseOptions(), "how much label noise was averaged away")
    evaluate: EvaluateOptions = option(EvaluateOptions(), "accuracy beside other methods")
    report: ReportOptions = option(ReportOptions(), "figures and HTML report")
    paper_toy: PaperToyOptions = option(PaperToyOptions(), "study: neighbours against the frequency of a target")
    denoising_validation: DenoisingValidationOptions = option(
        DenoisingValidationOptions(), "study: predicted denoising against replicas"
    )
    paper_enforced_similarity: EnforcedSimilarityOptions = option(
        EnforcedSimilarityOptions(), "study: training with the similarity term and without"
    )


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(RegisterOptions, CommonConfig):
    """Settings of `register`: its options stand at the top level."""

    fabric: FabricOptions = option(FabricOptions(), "processes that share the windows")
    pairs: str | None = option(
        None,
        "CSV of pairs, one a row: columns fixed, moving (paths as seen from the current folder) and any other key, "
        "windows.window_px for one; each into the folder of output_dir that its row numbers, finished ones skipped",
    )
    row: int = option(0, "row of the CSV of pairs, counted from 0", low=0)


OF_ALL_PAIRS = ("output_dir", "data", "fabric", "pairs", "row")
"""Keys of `register` that are no pair's own."""


class Key(NamedTuple):
    """One key of a schema: dotted path, type and default as text, and the option's metadata."""

    path: str
    kind: str
    default: str
    metadata: dict[str, Any]


def keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """List the keys of a schema, sections opened; the keys of a list's items come as `list[].key`."""
    hints = get_type_hints(schema)
    for spec in fields(schema):
        path, hint = f"{prefix}{spec.name}", hints[spec.name]
        if is_dataclass(hint):
            yield from keys(cast(type, hint), f"{path}.")
            continue
        yield Key(path, _kind(hint), _shown(spec), dict(spec.metadata))
        if (item := _item(hint)) is not None:
            yield from keys(item, f"{path}[].")


def register_schemas() -> None:
    """Make the schemas known to Hydra, under the names that the files in `conf/` start from."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=_open_twin(RunConfig))
    store.store(name="register_schema", node=_open_twin(RegisterConfig))
    store.store(name="apply_schema", node=_open_twin(ApplyOptions))


def pair_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a CSV of pairs, whose columns are keys of `register` or sections of it.

    Raises:
        InputError: as `read_pairs`.
        ConfigError: likewise.
    """
    names = [key.path for key in keys(RegisterConfig) if key.path.partition(".")[0] not in OF_ALL_PAIRS]
    sections = dict.fromkeys(name.partition(".")[0] for name in names)
    return read_pairs(path, list(dict.fromkeys([*sections, *names])))


def fill_row(config: DictConfig) -> None:
    """Put a row of the CSV of pairs into the configuration, if it names one.

    Raises:
        InputError: as `read_pairs`, or there is no such row.
    """
    if config.get("pairs") is None:
        return
    rows = pair_rows(config.pairs)
    if config.row >= len(rows):
        raise InputError(f"{config.pairs}: has no row {config.row}; it has {len(rows)}, counted from 0")
    for name, value in rows[config.row].items():
        OmegaConf.update(config, f"{name}.enabled" if name == "adapt" and isinstance(value, str) else name, value)


def typed(config: DictConfig, schema: type[Config]) -> Config:
    """Turn a composed configuration into its dataclass, with all values in range.

    Raises:
        ConfigError: mandatory keys are missing, or a value is out of range.
        omegaconf.errors.OmegaConfBaseException: an interpolation fails.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(missing_text(missing))
    settings = _built(schema, OmegaConf.to_container(config, resolve=True))
    check_options(settings)
    return cast(Config, settings)


@cache
def _open_twin(schema: type) -> type:
    """The same dataclass, not frozen: OmegaConf makes a frozen one read-only, so that nothing composes onto it."""
    hints, twins = get_type_hints(schema), []
    for spec in fields(schema):
        hint, required = hints[spec.name], spec.default is MISSING and spec.default_factory is MISSING
        item = _item(hint)
        if is_dataclass(hint):
            twin = _open_twin(cast(type, hint))
            twins.append((spec.name, twin, field(default_factory=twin)))
        elif item is not None:
            twin, default = _open_twin(item), _default(spec)
            twins.append((spec.name, list[twin], field(default_factory=partial(_copies, twin, default))))  # type: ignore[valid-type]
        elif spec.default_factory is not MISSING:
            twins.append((spec.name, hint, field(default_factory=spec.default_factory)))
        else:
            twins.append((spec.name, hint, field(default="???" if required else spec.default)))
    return make_dataclass(schema.__name__, twins)


def _copies(twin: type, items: list[Any]) -> list[Any]:
    return [twin(**asdict(item)) for item in items]


def _built(schema: type, values: Any) -> Any:
    hints, known = get_type_hints(schema), {}
    for name, value in values.items():
        hint, item = hints[name], _item(hints[name])
        if is_dataclass(hint):
            known[name] = _built(cast(type, hint), value)
        else:
            known[name] = [_built(item, one) for one in value] if item is not None else value
    return schema(**known)


def _item(hint: Any) -> type | None:
    """Dataclass of a list's items, if that is what the type is."""
    inside = get_args(hint)[0] if get_origin(hint) is list else None
    return cast(type, inside) if is_dataclass(inside) else None


def explain(error: BaseException, schema: type) -> str:
    """Say in one line what is wrong with a configuration that Hydra or OmegaConf refused.

    Args:
        error: what was raised.
        schema: schema of the command, for the nearest key.
    """
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as key=value; put a value with spaces, = or , in quotes: 'key=\"a=b\"'"
        )
    text = "\n".join(str(link) for link in _chain(error))
    place = f"{found[1]}: " if (found := re.search(r"In '([^']+)'", text)) else ""
    key = found[1] if (found := re.search(r"full_key: (\S+)", text)) else ""
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\n\t\S+)+)", text):
        group, name = found[2], found[1].rpartition("/")[2]
        return f"{group}={name} is not known; choose one of {', '.join(found[3].split())}"
    if found := re.search(r"Could not find '([^']+)'", text):
        return f"{place}there is no {found[1]} in {conf_folder()}"
    if found := re.search(r"Could not load '([^']+)'", text):
        return f"{place}its defaults name {found[1]}, which is not there; check the name and --config-dir"
    if key == "experiment" and place:
        return f"{place}its first line must be `# @package _global_`, and its keys follow as in {conf_folder() / key}"
    if re.search(r"Key '[^']*' (is )?not in |Could not override", text):
        key = key or re.search(r"Could not override '([^']+)'", text)[1]  # type: ignore[index]
        return f"{place}{key} is not a key; {_nearest(key, schema)}"
    if found := re.search(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", text):
        return f"{place}{key}={found[1]} is not of the right type: it must be {_TYPES.get(found[3], found[3])}"
    if found := re.search(r"Error merging override ([\w.]+)=(.*)", text):
        kinds = {item.path: item.kind for item in keys(schema)}
        wanted = _must_be(kinds[found[1]]) if found[1] in kinds else f"set its keys, {_inside(found[1], kinds)}"
        return f"{place}{found[1]}={found[2]} is not of the right type: {wanted}"
    if re.search(r"is not a subclass of|is not a ListConfig|Cannot merge \w+ with \w+", text):
        kind = {item.path: item.kind for item in keys(schema)}.get(key)
        return f"{place}{f'{key} is not of the right type: {_must_be(kind)}' if kind else MIXED}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{place}{missing_text([found[1]])}"
    return f"{place}{' '.join(str(error).split())}"


def _must_be(kind: str) -> str:
    return f"it must be {kind if kind == _TYPES['Boolean'] else f'a {kind}'}"


def missing_text(names: Sequence[str]) -> str:
    """Say which keys have to be given."""
    *others, last = names
    named = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    given = " ".join(f"{name}=..." for name in names)
    return f"{named} missing; give {given} on the command line or in an experiment file"


MIXED = "a list (items begin with -), a section of keys and a value are taken for one another; compare --help"
_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _nearest(key: str, schema: type) -> str:
    known = [item.path for item in keys(schema)]
    known += sorted({path.rpartition(".")[0] for path in known if "." in path and "[]" not in path})
    sought = re.sub(r"\[\d+\]", "[]", key)
    if near := difflib.get_close_matches(sought, known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}?"
    last = {path.rpartition(".")[2]: path for path in reversed(known)}
    if near := difflib.get_close_matches(sought.rpartition(".")[2], last, n=1, cutoff=0.7):
        return f"did you mean {last[near[0]]}?"
    return f"known here: {_inside(sought.rpartition('.')[0], known)}"


def _inside(section: str, paths: Iterable[str]) -> str:
    """Names of what lies directly inside a section."""
    inside = {path[len(section) :].lstrip(".").partition(".")[0] for path in paths if path.startswith(section)}
    return ", ".join(sorted(inside))


def _kind(hint: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if get_origin(hint) is list:
        item = get_args(hint)[0]
        return f"list of {' or '.join(names.get(kind, 'sections') for kind in get_args(item) or [item])}"
    members = [names.get(member, str(member)) for member in get_args(hint) if member is not type(None)]
    return names.get(hint) or " or ".join(members)


def _default(spec: Field[Any]) -> Any:
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default


def _shown(spec: Field[Any]) -> str:
    value = _default(spec)
    if value is MISSING:
        return "required"
    plain = (
        [asdict(cast(Any, item)) if is_dataclass(item) else item for item in value]
        if isinstance(value, list)
        else value
    )
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("...\n").strip()
