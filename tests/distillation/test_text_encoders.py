"""A student tells of a pipeline whose text encoder is not that of its training."""

import json
import shutil
import warnings

import pytest

from pdmd import OdeExpert, PhasePlan, Student
from pdmd.distillation.student_folders import source_teacher
from pdmd.distillation.text_encoders import with_encoder
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline

NAME = "sd3"
TOLD = "the text encoder or tokenizer of .* is not the one with which this student was trained"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoders")
    write_tiny_pipeline(NAME, place / "pipeline")
    options = {"folder": str(place / "pipeline"), "dtype": "float32", **TINY[NAME].options}
    teacher = teachers[NAME](**options)
    source = {"teacher": NAME, "arguments": options}
    experts = [OdeExpert(teacher.trainable_copy(), phase) for phase in PhasePlan.uniform(2)]
    Student(experts, source=source).save(place / "student")
    return place


@pytest.fixture
def place(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def rewrite(place, **vocabulary):
    """Changes what the tokenizer of a pipeline makes of a prompt."""
    path = place / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | vocabulary))
    return str(place)


def test_the_pipeline_of_the_training_is_used_silently_wherever_it_lies(saved, place):
    for folder in (saved / "pipeline", place / "pipeline"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            source_teacher(place / "student", {"folder": str(folder)})


def test_another_text_encoder_is_warned_of(place):
    folder = rewrite(place / "pipeline", do_lower_case=False, pad_token="!")
    with pytest.warns(UserWarning, match=TOLD):
        source_teacher(place / "student", {"folder": folder})


def test_a_student_that_is_saved_again_remembers_its_own_encoder(place):
    loaded = Student.load(place / "student", trust_source=True)
    folder = rewrite(place / "pipeline", pad_token="!")
    loaded.save(place / "again")
    with pytest.warns(UserWarning, match=TOLD):
        source_teacher(place / "again", {"folder": folder})


@pytest.mark.parametrize(
    "source",
    [
        None,
        {"teacher": "mixture", "arguments": {"dim": 2}},
        {"teacher": NAME, "arguments": {"folder": "no/where/at all"}},
        {"teacher": NAME, "arguments": {"folder": "not-there/at-all"}},
    ],
)
def test_a_source_without_a_pipeline_at_hand_stays_as_it_is(source):
    assert with_encoder(source) == source


def test_a_damaged_pipeline_does_not_prevent_that_a_student_is_saved(place):
    folder = place / "pipeline"
    next(folder.glob("text_encoder/*.safetensors")).write_bytes(b"damaged")
    source = {"teacher": NAME, "arguments": {"folder": str(folder)}}
    assert with_encoder(source) == source
