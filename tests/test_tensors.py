import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from regnet.tensors import write_tensors

CODE = """
import sys, torch
from pathlib import Path
from regnet.tensors import write_tensors
write_tensors(Path(sys.argv[1]), {"b": torch.arange(6.).view(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16)}, NOTES)
"""
NOTES = {name: name.upper() for name in "qwertyuiop"} | {"ü": '{"quoted": 1}'}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16), "empty": torch.ones(0, 3)}
    write_tensors(tmp_path / "t.safetensors", tensors, NOTES)
    with safe_open(tmp_path / "t.safetensors", "pt") as stream:
        assert stream.metadata() == NOTES
        assert set(stream.keys()) == set(tensors)
        for name, tensor in tensors.items():
            torch.testing.assert_close(stream.get_tensor(name), tensor, rtol=0, atol=0)


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """The library alone puts ten notes into another order each time."""
    for name in ("one", "two"):
        code = CODE.replace("NOTES", repr(NOTES))
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
