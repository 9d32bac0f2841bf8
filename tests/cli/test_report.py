"""`pdmd report`."""

import shutil

import pytest

from pdmd.cli.main import main


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.toml", "[[", "not readable TOML"),
        ("config.toml", "x = 1", "unknown key 'x'"),
        ("metrics.json", "{", "metrics.json is damaged"),
        ("plan.json", "[", "plan.json is damaged"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(tmp_path, finished, capsys, name, content, named):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
