"""Comparisons of methods on the same prompts and noise."""

import pytest

from pdmd import MixtureTeacher, OdeExpert, PhasePlan, Student
from pdmd.distributed.communicator import SingleRank
from pdmd.evaluation.features import FlatFeatures
from pdmd.evaluation.perceptual.comparison import SHOWN, Comparison, methods_of
from pdmd.evaluation.perceptual.metrics import metrics
from pdmd.evaluation.perceptual.report import write_comparison
from pdmd.evaluation.perceptual.vision import VisionFeatures

SEEDS, PROMPTS = 3, 6


def decode(x):
    return x.sigmoid().unflatten(1, (3, 2, 1))


def student_of(teacher):
    experts = [OdeExpert(teacher, phase) for phase in PhasePlan.uniform(2)]
    return Student(experts, encode=teacher.encode, prompts=teacher.prompts)


@pytest.fixture(scope="module")
def teacher():
    return MixtureTeacher.random(dim=6, classes=3, modes=2)


def comparison(teacher, folder, *, steps=4, batch=7, ranks=None, **changes):
    names = ("diversity", "frechet", "kernel")
    options = {
        "decode": decode,
        "prompts": [teacher.prompts[i % 3] for i in range(PROMPTS)],
        "metrics": {name: metrics[name]() for name in names},
        "measurements": {"vision": VisionFeatures(FlatFeatures())},
        "folder": folder,
        "seeds": SEEDS,
    }
    methods = methods_of(student_of(teacher), teacher, teacher_steps=steps)
    return Comparison(methods, batch=batch, ranks=ranks, **{**options, **changes})


def table(compared):
    compared.measure(compared.prepare(), progress=False)
    return {row["method"]: row for row in compared.rows()}


def test_the_teacher_at_the_students_steps_is_the_student_that_has_its_networks(teacher, tmp_path):
    found = table(comparison(teacher, tmp_path))
    assert list(found) == ["teacher", "teacher_euler_2", "student"]
    assert [row["nfe"] for row in found.values()] == [4, 2, 2]
    assert found["teacher"]["frechet"] is None and found["teacher"]["kernel"] is None
    same = {k: v for k, v in found["student"].items() if k != "method"}
    few = {k: v for k, v in found["teacher_euler_2"].items() if k != "method"}
    assert same == pytest.approx(few, rel=1e-6) and same["frechet"] > 1e-6
    equal = table(comparison(teacher, tmp_path / "equal", steps=2))["student"]
    assert equal["frechet"] == pytest.approx(0, abs=1e-9)


def test_an_interrupted_comparison_goes_on_with_other_batches(teacher, tmp_path):
    whole = comparison(teacher, tmp_path / "whole", batch=100)
    expected = table(whole)
    broken = comparison(teacher, tmp_path / "parts", batch=2)
    calls = []

    def interrupted(samples):
        calls.append(len(samples.pictures))
        if len(calls) == 8:  # in the second method
            raise KeyboardInterrupt
        return VisionFeatures(FlatFeatures())(samples)

    broken.measurements["vision"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        broken.measure(broken.prepare(), progress=False)
    assert calls == [SEEDS] * 8
    again = comparison(teacher, tmp_path / "parts", batch=7)
    done = again.prepare()
    assert list(done.values()) == [PROMPTS * SEEDS, SEEDS, 0]
    found = table(again)
    for name, row in expected.items():
        for key in ("cosine", *(("frechet", "kernel") if name != "teacher" else ())):
            assert found[name][key] == pytest.approx(row[key], rel=1e-3, abs=1e-4)
    pictures, others = whole.pictures(), again.pictures()
    assert pictures["student"].shape == (SHOWN * SEEDS, 3, 2, 1)
    assert (pictures["student"] - others["student"]).abs().max() <= 1 / 255 + 1e-6


def test_no_batch_is_larger_than_chosen_and_rows_only_leave_a_rank(teacher, tmp_path):
    gathered, sizes = [], []

    class Noted(SingleRank):
        def gather_rows(self, value):
            gathered.append(value[0].numel())
            return super().gather_rows(value)

    def noted(x):
        sizes.append(len(x))
        return decode(x)

    compared = comparison(teacher, tmp_path, batch=2, ranks=Noted(), decode=noted)
    compared.measure(compared.prepare(), progress=False)
    assert max(sizes) == 2
    assert max(gathered) == 6  # the features, and the thumbnails of the first prompts
    assert len(gathered) == 3 * (PROMPTS + SHOWN)


def test_settings_that_change_the_rows_are_checked(teacher, tmp_path):
    comparison(teacher, tmp_path).prepare()
    with pytest.raises(ValueError, match="seed = 1234, not 5"):
        comparison(teacher, tmp_path, seed=5).prepare()
    comparison(teacher, tmp_path, seed=5).prepare(overwrite=True)
    with pytest.raises(ValueError, match="2 seeds of a prompt"):
        comparison(teacher, tmp_path, seeds=1)


def test_the_report_has_the_table_its_meanings_and_the_pictures(teacher, tmp_path):
    compared = comparison(teacher, tmp_path)
    table(compared)
    content = {
        "title": "<b>a test</b>",
        "facts": {"steps": "4 & 2"},
        "figures": metrics["kernel"].figures,
        "pictures": compared.pictures(),
        "prompts": ["one", "two", "$three$", "<four>"],
    }
    page = write_comparison(tmp_path / "report.html", compared.rows(), **content).read_text()
    assert "&lt;b&gt;a test&lt;/b&gt;" in page and "<b>a test" not in page
    assert "4 &amp; 2" in page and metrics["kernel"].figures["kernel"] in page
    assert page.count("data:image/png") == 3 and 'class="student"' in page
    assert "<td>–</td>" in page and "Notices" not in page
    path = write_comparison(tmp_path / "x.html", compared.rows(), notices=["x < y"], **content)
    assert "<h2>Notices</h2>\n<ul><li>x &lt; y</li></ul>" in path.read_text()
    assert compared.distances() == ["frechet", "kernel"]
