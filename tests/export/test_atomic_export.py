"""Exports are atomic, and never replace files that no export wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdmd.cli.main import main
from pdmd.export.atomic_export import LISTING, atomic_folder, check_destination
from pdmd.export.bases import BasePipeline
from pdmd.teachers import WanTeacher


def write(folder, text, **more):
    with atomic_folder(folder, **{"overwrite": False, **more}) as draft:
        (draft / "part").mkdir()
        (draft / "part" / "file").write_text(text)


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_an_export_is_replaced_only_with_overwrite(tmp_path):
    folder = tmp_path / "x"
    write(folder, "one")
    assert set(content(folder)) == {LISTING, "part/file"}
    with pytest.raises(ValueError, match="contains an export; .*--overwrite"):
        write(folder, "two")
    write(folder, "two", overwrite=True)
    assert content(folder)["part/file"] == "two" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_foreign_files_are_never_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="was not written by an export"):
        write(tmp_path / "x", "one", overwrite=True)
    write(tmp_path / "y", "one")
    (tmp_path / "y" / "part" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="part/mine, which no export wrote"):
        write(tmp_path / "y", "two", overwrite=True)
    assert content(tmp_path / "y")["part/file"] == "one"


@pytest.mark.parametrize("fails", ["writing", "renaming"])
def test_a_failed_export_keeps_the_old_one(tmp_path, monkeypatch, fails):
    folder = tmp_path / "x"
    write(folder, "one")
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise OSError("the disk is gone")
        return rename(self, target)

    if fails == "renaming":
        monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        with atomic_folder(folder, overwrite=True) as draft:
            (draft / "file").write_text("two")
            if fails == "writing":
                raise OSError("the disk is gone")
    assert content(folder)["part/file"] == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_second_export_to_a_folder_waits_for_the_first(tmp_path):
    with atomic_folder(tmp_path / "x", overwrite=False) as draft:
        (draft / "file").write_text("one")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"x is in use by process {os.getpid()} "):
                write(tmp_path / "x", "two", overwrite=overwrite)
        write(tmp_path / "y", "two")
    assert content(tmp_path / "x").keys() == {LISTING, "file"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_exports_that_started_together_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr("pdmd.export.atomic_export._drafts", lambda folder: [])
    with pytest.raises(ValueError, match="contains an export; .*--overwrite"):
        with atomic_folder(tmp_path / "x", overwrite=False) as draft:
            (draft / "file").write_text("one")
            write(tmp_path / "x", "two")
    assert content(tmp_path / "x").keys() == {LISTING, "part/file"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_draft_of_a_killed_export_is_removed(tmp_path):
    code = "import os, pathlib, sys; from pdmd.export.atomic_export import atomic_folder\n"
    code += "with atomic_folder(pathlib.Path(sys.argv[1]), overwrite=False): os._exit(1)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"])
    own = tmp_path / ".x.0123456789ab.partial"
    own.mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path / "x", "one")
    assert {p.name for p in tmp_path.iterdir()} == {"x", own.name}


def test_the_remains_of_an_interrupted_export_raise(tmp_path):
    write(tmp_path / "x", "one")
    (tmp_path / "x").rename(tmp_path / "x.replaced")
    with pytest.raises(ValueError, match="x.replaced was left by an interrupted export"):
        check_destination(tmp_path / "x", overwrite=True)
    assert content(tmp_path / "x.replaced")["part/file"] == "one"


def test_the_working_directory_can_be_the_destination(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    write(Path("."), "one")
    assert content(tmp_path / "x")["part/file"] == "one"


@pytest.mark.parametrize("url", ["s3://bucket/x", "memory://x"])
def test_urls_are_rejected_and_create_no_folder(tmp_path, monkeypatch, capsys, url):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "nowhere", url]) == 2
    assert f"an export is written to a local path, got {url!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_stay_within_the_pipelines_folder(tmp_path):
    for name in ("../outside", "a/b", ".."):
        base = BasePipeline("x", tmp_path, {name: ["transformers", "T5"]}, {})
        with pytest.raises(ValueError, match="which is not a folder name"):
            base.parts(WanTeacher.layout)
