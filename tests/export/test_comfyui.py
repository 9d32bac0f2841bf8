"""The workflow for ComfyUI: its graph is whole, and samples at the student's timesteps."""

import json

import pytest

from pdmd import PhasePlan
from pdmd.distillation.adapters import LowRank
from pdmd.export import export_lora
from pdmd.export.comfyui import FAMILIES, workflow
from tests.helpers.exporting import qwen_folder, student_of


def wired(nodes):
    """Asserts that every input that is a link leads to an earlier node; returns those reached."""
    reached, ahead = (
        set(),
        [number for number, node in nodes.items() if "Save" in node["class_type"]],
    )
    while ahead:
        number = ahead.pop()
        reached.add(number)
        for value in nodes[number]["inputs"].values():
            if isinstance(value, list):
                assert int(value[0]) < int(number) and value[1] == 0
                ahead.append(value[0])
    return reached


def of(nodes, name):
    return [node["inputs"] for node in nodes.values() if node["class_type"] == name]


@pytest.mark.parametrize("pipeline", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_node_leads_to_what_is_saved(pipeline, count):
    files = [f"{i}.safetensors" for i in range(count)]
    grids = [(1.0, 0.8, 0.6), (0.6, 0.3), (0.3, 0.0)][:count]
    bases = ["a", "b", "b"][:count]
    nodes = workflow(pipeline, files, bases, grids, video="Wan" in pipeline)
    assert wired(nodes) == nodes.keys()
    assert [lora["lora_name"] for lora in of(nodes, "LoraLoaderModelOnly")] == files
    assert len(of(nodes, "UNETLoader")) == len({*bases})
    samplers = of(nodes, "SamplerCustom")
    assert [step["add_noise"] for step in samplers] == [True] + [False] * (count - 1)
    assert {step["cfg"] for step in samplers} == {1.0}
    sigmas = [node["sigmas"] for node in of(nodes, "ManualSigmas")]
    assert sigmas[0] == "1, 0.8, 0.6"
    for before, after in zip(sigmas, sigmas[1:], strict=False):  # each goes on where one stopped
        assert before.split(", ")[-1] == after.split(", ")[0]


def test_a_family_without_known_nodes_has_none():
    assert workflow("WanImageToVideoPipeline", ["a"], ["b"], [(1.0, 0.0)]) is None


@pytest.mark.slow
def test_a_workflow_is_written_beside_the_files(tmp_path):
    base = qwen_folder(tmp_path / "base")
    plan = PhasePlan.uniform(2, steps=2)
    folder = export_lora(
        student_of("qwen_image", plan, base, adapter=LowRank(rank=2)), tmp_path / "lora"
    )
    nodes = json.loads((folder / "comfyui" / "workflow.json").read_text())
    files = [lora["lora_name"] for lora in of(nodes, "LoraLoaderModelOnly")]
    assert all((folder / "comfyui" / file).is_file() for file in files) and len(files) == 2
    assert [s["sigmas"] for s in of(nodes, "ManualSigmas")] == ["1, 0.75, 0.5", "0.5, 0.25, 0"]
    card = (folder / "README.md").read_text()
    assert "`workflow.json` beside the files" in card and "They contain no code" in card
    assert not (folder / "diffusers" / "workflow.json").exists()
