"""What every report is made of: sections with pictures, tables and numbers, and the one HTML file that holds them."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from regnet.report.tables import Table, cell

SOFTWARE = ("regnet", "torch", "numpy", "rasterio", "geopandas", "zarr", "scikit-image", "opencv-python-headless")
_LISTED = 4
"""Longer lists are left to the files."""


@dataclass
class Picture:
    """A figure in the report: an inlined WebP, its caption, and its file beside the report if there is one."""

    source: str
    caption: str
    file: str = ""


@dataclass
class Section:
    """A part of the report; `note` says what is missing."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    note: str = ""


def render_page(title: str, sections: list[Section], settings: Mapping[str, str]) -> str:
    """A report as HTML that holds all it shows; `settings` are texts by the name of what they belong to."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regnet.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html")
    return template.render(title=title, sections=sections, settings=settings, software=_software())


def inlined(path: Path) -> str:
    """A picture as a data URI, in WebP, which is a fifth of the PNG's size."""
    with Image.open(path) as picture, io.BytesIO() as stream:
        picture.convert("RGB").save(stream, "WEBP", quality=88)
        return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def facts_of(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The numbers, texts and short lists of numbers of a summary as texts; what is not known is left out."""
    return {key: cell(value) for key, value in numbers.items() if _is_fact(value)}


def _is_fact(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= _LISTED and all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions
