"""Many pairs in one command: any key as a column, each pair by itself, finished ones skipped, a table at the end."""

import csv
import json
import shutil
from unittest.mock import Mock

import pytest

from regnet import cli
from regnet.config import pair_rows
from regnet.errors import ConfigError, InputError, OutputError
from regnet.registration import register as module
from regnet.registration.outcomes import (
    gather_outcomes,
    outcomes_text,
    put_outcomes_aside,
    write_outcome,
    write_table,
)


@pytest.fixture
def pairs(tmp_path):
    """Write pairs.csv: its columns, and its rows."""

    def write(columns, *rows):
        with (tmp_path / "pairs.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])

    return write


@pytest.fixture
def many(here, pairs, tmp_path):
    """Register pairs.csv into a folder; gives what the command left there, too."""

    def run(*arguments):
        done = here("register", "pairs=pairs.csv", "output_dir=many", "global_stage=false", *arguments)
        path = tmp_path / "many" / "pairs_summary.csv"
        return done, list(csv.DictReader(path.open())) if path.exists() else None

    return run


@pytest.fixture
def plain(quick, monkeypatch):
    """Where neither the field nor the report matters."""
    monkeypatch.setattr(module, "report_registration", lambda folder, *_: (folder / "report.html").touch())


def summary(tmp_path, row):
    return json.loads((tmp_path / "many" / str(row) / "summary.json").read_text())


def test_pairs_are_registered_row_by_row_and_a_bad_one_stops_none(tmp_path, small, pairs, many):
    fixed, moving = small
    columns = ("fixed", "moving", "tie_spacing_px", "windows", "windows.window_px", "fixed_bands")
    pairs(columns, (fixed, moving, 32, "", 64, "[1]"), (fixed, "nowhere.tif"), (fixed, moving, "", "", "", ""))
    done, table = many()
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("regnet:")] == [
        "regnet: pairs.csv: row 1: nowhere.tif: no such file; check the path"
    ]
    settings = [summary(tmp_path, row)["settings"] for row in (0, 2)]
    assert [each["tie_spacing_px"] for each in settings] == [32, 64]
    assert [each["windows"]["window_px"] for each in settings] == [64, 1024]
    assert [each["fixed_bands"] for each in settings] == [[1], []]
    assert [row["status"] for row in table] == ["registered", "failed", "registered"]
    assert [row["row"] for row in table] == ["0", "1", "2"]
    assert table[1]["error"] == "nowhere.tif: no such file; check the path"
    assert float(table[0]["shift_median_px"]) == pytest.approx(summary(tmp_path, 0)["shift_median_px"])
    assert float(table[2]["expected_error_median_px"]) == summary(tmp_path, 2)["expected_error_median_px"]
    assert done.stdout.endswith("table: many/pairs_summary.csv\n")


def test_finished_pairs_are_skipped_and_changed_ones_done_again(tmp_path, small, pairs, many, plain):
    fixed, moving = small
    changing = tmp_path / "moving.tif"
    shutil.copyfile(moving, changing)
    pairs(("fixed", "moving", "max_error_px"), (fixed, moving, 2), (fixed, moving, 3), (fixed, changing, 3))
    done, _ = many()
    assert done.returncode == 3
    assert "skipped" not in done.stdout
    first = [summary(tmp_path, row)["seconds"] for row in range(3)]

    pairs(("fixed", "moving", "max_error_px"), (fixed, moving, 2), (fixed, moving, 2.5), (fixed, changing, 3))
    shutil.copyfile(moving, changing)
    done, table = many()
    assert done.returncode == 3
    skipped = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert skipped == [f"skipped, {tmp_path}/many/0 was made with these settings"]
    assert [summary(tmp_path, row)["seconds"] == first[row] for row in range(3)] == [True, False, False]
    assert [row["status"] for row in table] == ["abstained everywhere"] * 3

    (tmp_path / "many" / "0" / "registered.tif").unlink()
    done, _ = many()
    assert [line for line in done.stdout.splitlines() if "skipped" in line] == [
        f"skipped, {tmp_path}/many/{row} was made with these settings" for row in (1, 2)
    ]
    assert (tmp_path / "many" / "0" / "registered.tif").exists()


def test_a_killed_command_goes_on_at_the_pair_it_was_at(small, pairs, many, plain, monkeypatch):
    """An interruption ends the command, not just the pair that it falls upon."""
    fixed, moving = small
    pairs(("fixed", "moving"), *[(fixed, moving)] * 3)
    whole, asked = module.register, []

    def killed(options, folder, ranks):
        asked.append(folder.name)
        if folder.name == "1" and asked == ["0", "1"]:
            raise KeyboardInterrupt
        return whole(options, folder, ranks)

    monkeypatch.setattr(module, "register", killed)
    done, table = many()
    assert (done.returncode, table) == (130, None)
    assert done.stderr.count("interrupted") == 1
    done, table = many()
    assert done.returncode == 3
    assert asked == ["0", "1", "1", "2"]
    assert len(table) == 3


def test_the_exit_code_of_many_pairs(small, pairs, many, monkeypatch, tmp_path):
    """3 only if all abstained; a defect before bad input, and that before all that is well."""

    def ends(*shares):
        def register(options, folder, ranks):
            share = shares[int(folder.name)]
            if isinstance(share, Exception):
                raise share
            cli.Path.mkdir(folder, parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps({"status": "made up", "outcome": "made up", "notes": []}))
            return share

        monkeypatch.setattr(module, "register", register)
        return many()[0].returncode

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pairs(("fixed", "moving"), *[small] * 2)
    assert ends(0.5, 0.0) == 0
    assert ends(0.0, 0.0) == 3
    assert ends(InputError("no"), 0.0) == 2
    assert ends(InputError("no"), ZeroDivisionError()) == 1
    monkeypatch.setattr(cli, "gather_outcomes", Mock(side_effect=OutputError("full")))
    assert ends(0.5, 0.5) == 2


def test_sections_by_their_short_name_and_keys_from_the_command_line(small, pairs, here):
    pairs(("fixed", "moving", "adapt", "adapt.minutes", "model"), (*small, "true", 0.1, "null"))
    told = here("register", "pairs=pairs.csv", "row=0", "output_dir=o", "tie_spacing_px=48", "memory_mb=100")
    assert "memory_mb=100 is out of range" in told.stderr
    pairs(("fixed", "moving", "max_error_px"), (*small, "little"))
    told = here("register", "pairs=pairs.csv", "row=0", "output_dir=o")
    assert "max_error_px=little is not of the right type: it must be a number" in told.stderr


def test_a_multirun_of_pairs_takes_every_setting_for_every_row(tmp_path, small, pairs, many, plain):
    pairs(("fixed", "moving"), small, small)
    done, table = many("--multirun", "tie_spacing_px=32,64")
    assert done.returncode == 3, done.stderr
    assert [summary(tmp_path, job)["settings"]["tie_spacing_px"] for job in range(4)] == [32, 32, 64, 64]
    assert [row["row"] for row in table] == ["0", "1", "0", "1"]


def test_rows_that_are_done_anew_leave_the_others_in_the_table(tmp_path, small, pairs, many, plain):
    fixed, moving = small
    pairs(("fixed", "moving"), small, (fixed, "nowhere.tif"), small)
    assert many()[0].returncode == 2
    pairs(("fixed", "moving", "tie_spacing_px"), small, small, (fixed, moving, 32))
    done, table = many("row=2", "--multirun")
    assert done.returncode == 3, done.stderr
    assert [(row["folder"], row["row"]) for row in table] == [("0", "0"), ("2", "2")]
    assert [summary(tmp_path, row)["settings"]["tie_spacing_px"] for row in (0, 2)] == [64, 32]
    done, table = many("row=1,2", "--multirun")
    assert [row["status"] for row in table] == ["abstained everywhere"] * 3
    assert done.stdout.splitlines()[-6].startswith("folder")
    pairs(("fixed", "moving"), (fixed, fixed))
    _, table = many()
    assert [row["moving"] for row in table] == [fixed]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("fixed,moving\n", InputError, "has no pairs"),
        ("a,b\n1,2\n", InputError, "has no pairs"),
        ("fixed,moving,colour\na,b,c\n", ConfigError, "colour is not a key of register; choose among seed, threads"),
        ("fixed,moving,windows.window\na,b,1\n", ConfigError, "did you mean windows.window_px?"),
        ("fixed,moving,output_dir\na,b,c\n", ConfigError, "column output_dir is not a key"),
        ("fixed,moving\na,b\na,b,c\n", InputError, "row 1 has more cells than columns"),
        ('fixed,moving,fixed_bands\na,b,"[1,2"\n', ConfigError, r"row 0: fixed_bands=\[1,2 cannot be read"),
    ],
)
def test_a_csv_that_holds_no_pairs(tmp_path, text, kind, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(kind, match=message):
        pair_rows(str(tmp_path / "pairs.csv"))
    with pytest.raises(InputError, match="not a CSV"):
        pair_rows(str(tmp_path / "missing.csv"))


def test_cells_are_text_but_for_lists_and_null(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "fixed, moving, where, moving_bands, model, layer\n[a].tif, null, kind: 'a', \"[red, 2]\", null, 7\n"
    )
    assert pair_rows(str(tmp_path / "pairs.csv")) == [
        {"fixed": "[a].tif", "moving": "null", "where": "kind: 'a'", "moving_bands": ["red", 2], "model": None}
        | {"layer": "7"}
    ]


def test_outcomes_in_words(tmp_path):
    given = {"row": 0, "fixed": "f.tif", "moving": "m.tif"}
    for folder in ("10", "9"):
        write_outcome(tmp_path / folder, given, 2, "no")
    assert [outcome["folder"] for outcome in write_table(tmp_path, gather_outcomes(tmp_path))] == ["9", "10"]
    put_outcomes_aside(tmp_path)
    assert gather_outcomes(tmp_path) == []
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "summary.json").write_text('{"status": "registered", "share_registered": 0.5}')
    write_outcome(tmp_path / "3", given, 0, "")
    assert outcomes_text(gather_outcomes(tmp_path)).splitlines() == [
        "folder  status      share  in place to, px  shift, px  expected error, px  moving",
        "3       registered  0.50   -                -          -                   m.tif",
    ]
