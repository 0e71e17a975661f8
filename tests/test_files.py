import errno

import pytest

from regnet.errors import OutputError
from regnet.files import digest, is_stamped, read_json, whole_path, write_json, write_stamp


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with whole_path(path) as partial:
            partial.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "run"
    (target / "old").mkdir(parents=True)
    with whole_path(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("x")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_full_disk_is_named(tmp_path):
    def write():
        with whole_path(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write()


def test_infinite_numbers_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5]}


def test_a_stamp_holds_for_its_settings_only(tmp_path):
    write_stamp(tmp_path, {"a": 1, "b": 2})
    assert is_stamped(tmp_path, {"b": 2, "a": 1})
    assert not is_stamped(tmp_path, {"a": 1, "b": 3})
    assert not is_stamped(tmp_path / "elsewhere", {"a": 1})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
