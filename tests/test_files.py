import errno
import os

import pytest

from regnet.errors import OutputError
from regnet.files import (
    digest,
    inherited,
    is_stamped,
    next_folder,
    read_json,
    scratch_folder,
    whole_path,
    write_json,
    write_stamp,
)


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


@pytest.mark.parametrize("replaced", [False, True])
def test_a_replacement_that_was_killed_half_way_leaves_a_whole_folder(tmp_path, replaced):
    """As after a power cut: the older folder was put aside, and the new one had or had not taken its place."""
    target, older = tmp_path / "run", tmp_path / ".older-run"
    older.mkdir()
    (older / "old").touch()
    if replaced:
        target.mkdir()
        (target / "new").touch()
    with pytest.raises(RuntimeError, match="again"), whole_path(target):
        raise RuntimeError("again")
    assert [path.name for path in target.iterdir()] == ["new" if replaced else "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_stays_if_its_successor_cannot_take_its_place(tmp_path, monkeypatch):
    target, replace = tmp_path / "run", os.replace
    target.mkdir()
    (target / "old").touch()

    def killed(source, place):
        if source.name.startswith(".partial"):
            raise KeyboardInterrupt
        replace(source, place)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), whole_path(target) as partial:
        partial.mkdir()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_next_folder_is_gone_on_with_and_replaces_the_old_one_when_it_is_whole(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()

    def killed():
        with next_folder(target) as place:
            place.mkdir()
            (place / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert [path.name for path in target.iterdir()] == ["old"]
    with next_folder(target) as place:
        (place / "half").rename(place / "new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_what_was_made_alike_is_inherited(tmp_path):
    write_stamp(tmp_path / "earlier", {"a": 1})
    place = tmp_path / "place"
    assert not inherited(place, tmp_path / "earlier", {"a": 2})
    assert not place.exists()
    assert inherited(place, tmp_path / "earlier", {"a": 1})
    assert is_stamped(place, {"a": 1})
    assert inherited(place, tmp_path / "nowhere", {"a": 1})


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


def test_scratch_is_gone_afterwards_and_a_full_disk_names_the_folder(tmp_path):
    (tmp_path / ".scratch" / "left").mkdir(parents=True)
    with scratch_folder(tmp_path) as scratch:
        assert not list(scratch.iterdir())
        (scratch / "large").write_text("large")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No space left"), scratch_folder(tmp_path / "stage"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list((tmp_path / "stage").iterdir())
