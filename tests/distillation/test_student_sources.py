"""Sources of students: what could not be written or read is named before a training."""

from pathlib import Path

import pytest
import torch

from tests.helpers.small_runs import SOURCE, small, untrained_student

BAD = [
    ({"name": "mixture"}, "names its teacher, got .*'mixture'.*registered teacher"),
    ({**SOURCE, "network": {"arguments": {}}}, "names its name, got"),
    ({**SOURCE, "arguments": {"dim": torch.tensor(2)}}, r"JSON, got .*tensor\(2\).*not JSON"),
    ({**SOURCE, "folder": Path("weights")}, "JSON, got .*Path"),
    ({**SOURCE, "guidance": float("nan")}, "JSON, got .*nan"),
    ({"teacher": 3}, "source must name a teacher and its arguments"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_a_source_is_checked_before_training_and_saving(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        small(source=source, init=None)  # the teacher has no weights: nothing is built
    student = untrained_student()
    student.source = source
    with pytest.raises(ValueError, match=message):
        student.save(tmp_path / "student")
    assert not any(tmp_path.iterdir())


def test_a_student_is_saved_to_a_path():
    with pytest.raises(TypeError, match="folder takes a text or a path, got None"):
        untrained_student().save(None)
