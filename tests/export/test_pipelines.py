"""Exported pipelines, loaded by diffusers alone, sample as the student does."""

import json
import re
from dataclasses import replace

import pytest

from pdmd import PhasePlan
from pdmd.distillation.experts import RenoisingExpert
from pdmd.export import export_diffusers, export_lora
from pdmd.teachers import FluxTeacher, LTXTeacher, SD3Teacher, ZImageTeacher
from tests.helpers.exporting import (
    BOUNDARY_ON_GRID,
    FOUR,
    RANK,
    SHIFTED,
    UNEVEN,
    Case,
    flow_folder,
    image_folder,
    qwen_folder,
    run_in_subprocess,
    student_of,
    wan_folder,
)

FLOW_NAMES = ("flux", "sd3", "z_image", "ltx")
IMAGE_NAMES = ("wan_i2v", "wan_i2v_2.1", "wan_i2v_5b")
STOCK = {"scheduler": "stock"}
ONE = PhasePlan.uniform(1, steps=3, shift=2)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    flows = {name: flow_folder(place / name, name) for name in FLOW_NAMES}
    return {
        "wan_2.2_a14b": wan_folder(place / "a14b"),
        "wan_2.1": wan_folder(place / "wan", "wan_2.1"),
        "wan_2.2_5b": wan_folder(place / "5b", "wan_2.2_5b"),
        "qwen_image": qwen_folder(place / "qwen"),
        **flows,
        **{name: image_folder(place / name, name) for name in IMAGE_NAMES},
    }


@pytest.fixture(scope="module")
def cases(bases, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")

    def student(base, plan, **arguments):
        return student_of(base, plan, bases[base], **arguments)

    def case(name, base, plan, *, make=None, more=None, **arguments):
        built = student(base, plan, **(make or {}))
        folder = export_diffusers(built, place / name, **(more or {}))
        return Case(name, folder, built, **arguments)

    def files(name, base, plan, adapter=RANK, **arguments):
        built = student(base, plan, adapter=adapter)
        folder = export_lora(built, place / name)
        kept = Case(f"{name}_files", folder, built, files="diffusers", **arguments)
        return [kept, replace(kept, name=f"{name}_comfyui", files="comfyui", card=False)]

    adapted = {"adapter": RANK}
    sigmas = {"sigmas": list(ONE.timesteps[:-1])}
    half = {"make": {"half": True}, "dtype": "bfloat16", "card": False}
    near = {**STOCK, "measure": 3}
    blocks = replace(RANK, targets=("*transformer_blocks.*",))
    cases = [
        case("two_experts", "wan_2.2_a14b", BOUNDARY_ON_GRID),
        case("two_experts_stock", "wan_2.2_a14b", SHIFTED, more=STOCK, trust=False),
        case("two_experts_near", "wan_2.2_a14b", BOUNDARY_ON_GRID, more=near, trust=False),
        case("four_experts", "wan_2.2_a14b", FOUR, again=True),
        case("three_phases", "wan_2.1", UNEVEN, more={"max_shard_size": "40KB"}),
        case("one_phase", "wan_2.1", ONE),
        case("tokens", "wan_2.2_5b", UNEVEN),
        case("renoising", "wan_2.2_a14b", BOUNDARY_ON_GRID, make={"expert": RenoisingExpert}),
        case("qwen_four", "qwen_image", FOUR),
        case("qwen_one", "qwen_image", ONE, again=True),
        case("qwen_stock", "qwen_image", ONE, more=STOCK, trust=False, steps=sigmas),
        case("two_adapters", "wan_2.2_a14b", BOUNDARY_ON_GRID, make=adapted),
        case("four_adapters", "wan_2.2_a14b", FOUR, make=adapted, again=True),
        case("three_adapters", "wan_2.1", UNEVEN, make=adapted),
        case("qwen_adapters", "qwen_image", FOUR, make=adapted),
        *files("two", "wan_2.2_a14b", BOUNDARY_ON_GRID),
        *files("four", "wan_2.2_a14b", FOUR),
        *files("three", "wan_2.1", UNEVEN),
        *files("qwen", "qwen_image", FOUR),
        *(case(name, name, UNEVEN, card=False) for name in FLOW_NAMES),
        case("ltx_stock", "ltx", FOUR, more=STOCK, card=False),
        case("z_image_adapters", "z_image", UNEVEN, make=adapted, card=False),
        *files("flux_lora", "flux", FOUR, card=False),
        *files("sd3_lora", "sd3", FOUR, card=False),
        *files("z_image_lora", "z_image", FOUR, card=False),
        *files("ltx_lora", "ltx", FOUR, blocks, card=False),
        case("i2v_two", "wan_i2v", BOUNDARY_ON_GRID),
        case("i2v_four", "wan_i2v", FOUR, make=adapted, again=True),
        case("i2v_image", "wan_i2v_2.1", UNEVEN),
        case("i2v_tokens", "wan_i2v_5b", UNEVEN),
        *files("i2v_lora", "wan_i2v", BOUNDARY_ON_GRID),
        *files("i2v_image_lora", "wan_i2v_2.1", UNEVEN),
        case("two_halves", "wan_2.2_a14b", BOUNDARY_ON_GRID, **half),
        case("four_halves", "wan_2.1", FOUR, **half),
        case("qwen_halves", "qwen_image", FOUR, **half),
    ]
    lines = re.findall(r"```python\n(.*?)```", cards(cases[2]), re.S)[1]
    cases.append(replace(cases[2], name="two_experts_exactly", before=lines, card=False))
    run_in_subprocess(cases, place)
    return {case.name: case for case in cases}


LAYOUTS = [cls.layout for cls in (FluxTeacher, SD3Teacher, ZImageTeacher, LTXTeacher)]
WAN_I2V = "WanImageToVideoPipeline"
WAN, QWEN = "WanTransformer3DModel", "QwenImageTransformer2DModel"


@pytest.mark.parametrize(
    ("name", "pipeline", "transformer"),
    [
        ("two_experts", "WanPipeline", WAN),
        ("two_experts_stock", "WanPipeline", WAN),
        ("two_experts_exactly", "WanPipeline", WAN),
        ("four_experts", "WanPipeline", "PhasedTransformer"),
        ("three_phases", "WanPipeline", "PhasedTransformer"),
        ("one_phase", "WanPipeline", WAN),
        ("tokens", "WanPipeline", "PhasedTransformer"),
        ("renoising", "WanPipeline", WAN),
        ("qwen_four", "QwenImagePipeline", "PhasedTransformer"),
        ("qwen_one", "QwenImagePipeline", QWEN),
        ("qwen_stock", "QwenImagePipeline", QWEN),
        ("two_adapters", "WanPipeline", WAN),
        ("four_adapters", "WanPipeline", "PhasedTransformer"),
        ("three_adapters", "WanPipeline", "PhasedTransformer"),
        ("qwen_adapters", "QwenImagePipeline", "PhasedTransformer"),
        *((f"{name}_files", "WanPipeline", WAN) for name in ("two", "four", "three")),
        *((f"{name}_comfyui", "WanPipeline", WAN) for name in ("two", "four", "three")),
        ("qwen_files", "QwenImagePipeline", QWEN),
        ("qwen_comfyui", "QwenImagePipeline", QWEN),
        ("flux", "FluxPipeline", "PhasedTransformer"),
        ("sd3", "StableDiffusion3Pipeline", "PhasedTransformer"),
        ("z_image", "ZImagePipeline", "PhasedTransformer"),
        ("z_image_adapters", "ZImagePipeline", "PhasedTransformer"),
        ("ltx", "LTXPipeline", "PhasedTransformer"),
        ("ltx_stock", "LTXPipeline", "PhasedTransformer"),
        ("i2v_two", WAN_I2V, WAN),
        ("i2v_four", WAN_I2V, "PhasedTransformer"),
        ("i2v_image", WAN_I2V, "PhasedTransformer"),
        ("i2v_tokens", WAN_I2V, "PhasedTransformer"),
        *(
            (f"i2v_{base}lora_{kind}", WAN_I2V, WAN)
            for base in ("", "image_")
            for kind in ("files", "comfyui")
        ),
        *(
            (f"{name}_lora_{kind}", layout.pipeline, layout.network)
            for name, layout in zip(FLOW_NAMES, LAYOUTS, strict=True)
            for kind in ("files", "comfyui")
        ),
    ],
)
def test_plain_diffusers_samples_as_the_student_does(cases, name, pipeline, transformer):
    case = cases[name]
    assert case.expected.abs().max() > 0.5
    assert case.error() < 1e-5
    facts = case.facts()
    # the card's lines ran too
    results = {"results": 1} if case.card else {}
    assert facts == {"class": pipeline, "transformer": transformer, **results}


@pytest.mark.parametrize("name", ["two_halves", "four_halves", "qwen_halves"])
def test_bfloat16_exports_differ_by_rounding_only(cases, name):
    case = cases[name]
    assert case.error() < 2**-7 * float(case.expected.abs().max())


def test_the_card_states_the_dtype_of_the_weights(cases):
    assert "torch_dtype=torch.bfloat16" in cards(cases["two_halves"])
    assert "torch_dtype=torch.float32" in cards(cases["two_experts"])


def cards(case):
    return (case.folder / "README.md").read_text()


def test_a_stock_scheduler_is_exact_for_shifted_uniform_timesteps(cases):
    case = cases["two_experts_stock"]
    index = json.loads((case.folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert not list(case.folder.rglob("*.py"))
    assert float(re.search(r"timesteps differ by at most (\S+);", cards(case))[1]) < 1e-7


def test_the_card_states_the_stock_schedulers_error(cases):
    case = cases["two_experts_near"]
    stated = re.search(
        r"timesteps differ by at most (\S+); samples of a mixture of two Gaussians with "
        r"closed-form velocity differ by (\S+) of the data's standard deviation \(root mean "
        r"square\); samples of this student's networks differ by (\S+?)\. ",
        cards(case),
    )
    times, known, own = (float(number) for number in stated.groups())
    out = case.result()
    error = float((out - case.expected).square().mean().sqrt() / case.expected.std())
    assert own == pytest.approx(error, rel=0.06) and own > 1e-3  # two digits are stated
    assert times == pytest.approx(0.0142, rel=0.05) and 1e-4 < known < times
    assert cases["two_experts_exactly"].error() < 1e-5  # with the card's lines
