"""Sizes of samples in a configuration: what is drawn, planned and validated."""

import pytest

from pdmd.cli.config import DistillConfig, TeacherConfig
from pdmd.cli.config_files import load_config
from pdmd.cli.plan import plan_run
from pdmd.planning.clusters import Cluster
from pdmd.teachers.families.tokens import DynamicShift
from tests.helpers.tiny_families import QWEN

SIZES = (
    {"height": 64, "width": 48},
    {"height": 64, "width": 96, "weight": 3},
    {"width": 16, "shift": 1.0},
)


def config(*buckets, **settings):
    return TeacherConfig(name="qwen_image", arguments=QWEN, buckets=buckets, **settings)


def built(*buckets, **settings):
    chosen = config(*buckets, **settings)
    return chosen.build_buckets(chosen.build())


def test_buckets_have_the_latents_and_the_familys_shift_of_their_size():
    wide, narrow = built(*SIZES), built(*SIZES[:1])
    assert [b.latent_shape for b in wide] == [(4, 8, 6), (4, 8, 12), (4, 8, 2)]
    assert [wide.probability(b) for b in wide] == [0.2, 0.6, 0.2]
    ratio = DynamicShift()(24) / DynamicShift()(12)
    assert [b.shift for b in wide] == pytest.approx([1.0, ratio, 1.0])
    assert len(narrow) == len(built()) == 1
    assert {b.shift for b in built(*SIZES, schedule="cosine")} == {1.0}


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ({"height": 40}, r"buckets\[2\] = \{height = 40\} does not fit .*multiple of 16, got 40"),
        ({"frames": 9}, r"buckets\[2\].*takes no argument 'frames'; it takes height, width"),
        ({"height": "64"}, r"buckets\[2\].*height must be a number, got '64'"),
        ({"height": 32, "weight": -1}, r"buckets\[2\].*weight.*must be positive"),
        ({"height": 64}, "two buckets have latents of 4 x 8 x 6"),
        (3, r"buckets\[2\] = 3 is no table"),
    ],
)
def test_a_bucket_that_does_not_fit_is_named(bucket, message):
    with pytest.raises(ValueError, match=message):
        built(SIZES[0], bucket)


def test_the_size_of_the_arguments_is_a_bucket():
    with pytest.raises(ValueError, match="none of teacher.buckets has the size .* 4 x 8 x 6, at"):
        built({"height": 32})


@pytest.mark.slow  # RunPlan.of_sizes is tested in tests/planning
def test_a_plan_is_that_of_the_largest_size_and_of_the_mean_hours():
    run = load_config("qwen_image")
    run.teacher = config(*SIZES)
    run.parallel.precision, run.lora.rank = "float32", 4
    plan = plan_run(run, Cluster(gpus=2))

    def alone(bucket):
        one = DistillConfig(**{**vars(run), "teacher": config().at_bucket(bucket)})
        return plan_run(one, Cluster(gpus=2))

    plans = [alone(bucket) for bucket in SIZES]
    assert plan.roles[0].teacher.tokens == max(p.roles[0].teacher.tokens for p in plans)
    assert plan.best.memory.total == plans[1].choice(plan.best.degrees).memory.total
    hours = [p.totals(p.choice(plan.best.degrees)).gpu_hours for p in plans]
    assert plan.totals().gpu_hours == pytest.approx(
        0.2 * hours[0] + 0.6 * hours[1] + 0.2 * hours[2]
    )
    assert plan.totals().flops < plans[1].totals().flops
    assert [row["share"] for row in plan.to_dict()["sizes"]] == [0.2, 0.6, 0.2]
