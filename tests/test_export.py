"""Exports: pipelines that plain diffusers loads and that sample as the student does."""

import json
import re
from dataclasses import replace

import pytest

from pdmd import PhasePlan
from pdmd.experts import RenoisingExpert
from pdmd.export import export_diffusers
from tests.exporting import (
    BOUNDARY_ON_GRID,
    FOUR,
    SHIFTED,
    UNEVEN,
    Case,
    qwen_folder,
    run_elsewhere,
    student_of,
    wan_folder,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    return {
        "wan_2.2_a14b": wan_folder(place / "a14b"),
        "wan_2.1": wan_folder(place / "wan", "wan_2.1"),
        "wan_2.2_5b": wan_folder(place / "5b", "wan_2.2_5b"),
        "qwen_image": qwen_folder(place / "qwen"),
    }


@pytest.fixture(scope="module")
def cases(bases, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")

    def case(name, base, plan, *, expert=None, more=None, **arguments):
        student = student_of(base, plan, bases[base], **({"expert": expert} if expert else {}))
        folder = export_diffusers(student, place / name, **(more or {}))
        return Case(name, folder, student, **arguments)

    stock = {"scheduler": "stock"}
    one = PhasePlan.uniform(1, steps=3, shift=2)
    made = [
        case("two_experts", "wan_2.2_a14b", BOUNDARY_ON_GRID),
        case("two_experts_stock", "wan_2.2_a14b", SHIFTED, more=stock, trust=False),
        case(
            "two_experts_near",
            "wan_2.2_a14b",
            BOUNDARY_ON_GRID,
            more={**stock, "measure": 3},
            trust=False,
        ),
        case("four_experts", "wan_2.2_a14b", FOUR, again=True),
        case("three_phases", "wan_2.1", UNEVEN, more={"max_shard_size": "40KB"}),
        case("one_phase", "wan_2.1", one),
        case("tokens", "wan_2.2_5b", UNEVEN),
        case("renoising", "wan_2.2_a14b", BOUNDARY_ON_GRID, expert=RenoisingExpert),
        case("qwen_four", "qwen_image", FOUR),
        case("qwen_one", "qwen_image", one, again=True),
        case(
            "qwen_stock",
            "qwen_image",
            one,
            more=stock,
            trust=False,
            steps={"sigmas": list(one.timesteps[:-1])},
        ),
    ]
    near = made[2]
    lines = re.findall(r"```python\n(.*?)```", (near.folder / "README.md").read_text(), re.S)[1]
    made.append(replace(near, name="two_experts_exactly", before=lines, card=False))
    run_elsewhere(made, place)
    return {case.name: case for case in made}


@pytest.mark.parametrize(
    ("name", "pipeline", "transformer"),
    [
        ("two_experts", "WanPipeline", "WanTransformer3DModel"),
        ("two_experts_stock", "WanPipeline", "WanTransformer3DModel"),
        ("four_experts", "WanPipeline", "PhasedTransformer"),
        ("three_phases", "WanPipeline", "PhasedTransformer"),
        ("one_phase", "WanPipeline", "WanTransformer3DModel"),
        ("tokens", "WanPipeline", "PhasedTransformer"),
        ("renoising", "WanPipeline", "WanTransformer3DModel"),
        ("qwen_four", "QwenImagePipeline", "PhasedTransformer"),
        ("qwen_one", "QwenImagePipeline", "QwenImageTransformer2DModel"),
        ("qwen_stock", "QwenImagePipeline", "QwenImageTransformer2DModel"),
    ],
)
def test_plain_diffusers_samples_as_the_student_does(cases, name, pipeline, transformer):
    case = cases[name]
    assert case.expected.abs().max() > 0.5
    assert case.error() < 1e-5
    facts = case.facts()  # of the pipeline that the card's own lines made
    assert facts == {"class": pipeline, "transformer": transformer, "results": 1}


def cards(case):
    return (case.folder / "README.md").read_text()


def test_a_stock_scheduler_walks_equal_steps_under_a_shift(cases):
    case = cases["two_experts_stock"]
    index = json.loads((case.folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert not list(case.folder.rglob("*.py"))
    assert float(re.search(r"times are off by (\S+) at most", cards(case))[1]) < 1e-7


def test_a_stock_schedulers_error_is_on_the_card(cases):
    case = cases["two_experts_near"]
    stated = re.search(
        r"times are off by (\S+) at most; samples of two Gaussians, whose flow is known, are off "
        r"by (\S+) of their deviation \(root mean square\), and the student's own by (\S+) of "
        r"theirs",
        cards(case),
    )
    times, known, own = (float(number) for number in stated.groups())
    out = case.result()
    error = float((out - case.expected).square().mean().sqrt() / case.expected.std())
    assert own == pytest.approx(error, rel=0.06) and own > 1e-3  # two digits are written
    assert times == pytest.approx(0.0142, rel=0.05) and 1e-4 < known < times
    assert cases["two_experts_exactly"].error() < 1e-5  # with the lines that the card adds
