"""Files of named tensors with notes, in the safetensors format: the same ones give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from regnet.files import whole_path

_LENGTH_BYTES = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors and notes, whole or not at all.

    Raises:
        OutputError: full disk or read-only folder.
    """
    whole = memoryview(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(notes)))
    start = _LENGTH_BYTES + int.from_bytes(whole[:_LENGTH_BYTES], "little")
    # The library writes the notes in the order of a hash table, which is another in every process.
    header = json.dumps(json.loads(bytes(whole[_LENGTH_BYTES:start])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    with whole_path(path) as partial, partial.open("wb") as stream:
        stream.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
        stream.write(header)
        stream.write(whole[start:])
