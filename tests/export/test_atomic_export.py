"""Exports are atomic, and never replace files that no export wrote."""

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
        if self.name == "x.partial":
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
