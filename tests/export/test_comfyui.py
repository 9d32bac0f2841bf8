"""The workflow for ComfyUI: its graph is whole, and samples at the student's timesteps."""

import json

import pytest

from pdmd import PhasePlan
from pdmd.distillation.adapters import LowRank
from pdmd.export import export_lora
from pdmd.export.comfyui import FAMILIES, workflow
from tests.helpers.exporting import qwen_folder, student_of

IMAGE = {"width": int, "height": int, "batch_size": int}
VIDEO = {**IMAGE, "length": int}
NODES = {  # inputs and outputs of ComfyUI's nodes, as its nodes.py and comfy_extras define them
    "CLIPLoader": ({"clip_name": str, "type": str}, ["CLIP"]),
    "DualCLIPLoader": ({"clip_name1": str, "clip_name2": str, "type": str}, ["CLIP"]),
    "TripleCLIPLoader": (dict.fromkeys(["clip_name1", "clip_name2", "clip_name3"], str), ["CLIP"]),
    "VAELoader": ({"vae_name": str}, ["VAE"]),
    "CLIPTextEncode": ({"clip": "CLIP", "text": str}, ["CONDITIONING"]),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": float}, ["CONDITIONING"]),
    "LTXVConditioning": (
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "frame_rate": float},
        ["CONDITIONING", "CONDITIONING"],
    ),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, ["CONDITIONING"]),
    "KSamplerSelect": ({"sampler_name": str}, ["SAMPLER"]),
    "EmptySD3LatentImage": (IMAGE, ["LATENT"]),
    "EmptyHunyuanLatentVideo": (VIDEO, ["LATENT"]),
    "EmptyLTXVLatentVideo": (VIDEO, ["LATENT"]),
    "UNETLoader": ({"unet_name": str, "weight_dtype": str}, ["MODEL"]),
    "LoraLoaderModelOnly": (
        {"model": "MODEL", "lora_name": str, "strength_model": float},
        ["MODEL"],
    ),
    "ManualSigmas": ({"sigmas": str}, ["SIGMAS"]),
    "SamplerCustom": (
        {
            **{"model": "MODEL", "add_noise": bool, "noise_seed": int, "cfg": float},
            **{"positive": "CONDITIONING", "negative": "CONDITIONING", "sampler": "SAMPLER"},
            **{"sigmas": "SIGMAS", "latent_image": "LATENT"},
        },
        ["LATENT", "LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, []),
    "CreateVideo": ({"images": "IMAGE", "fps": float}, ["VIDEO"]),
    "SaveVideo": ({"video": "VIDEO", "filename_prefix": str, "format": str, "codec": str}, []),
}


def wired(nodes):
    """Asserts that inputs are those of their nodes, and links of their type; returns the used."""
    reached, ahead = set(), [n for n, node in nodes.items() if "Save" in node["class_type"]]
    while ahead:
        number = ahead.pop()
        reached.add(number)
        wanted, _ = NODES[nodes[number]["class_type"]]
        assert nodes[number]["inputs"].keys() == wanted.keys()
        for name, value in nodes[number]["inputs"].items():
            if isinstance(value, list):
                source, output = value
                assert int(source) < int(number)
                assert NODES[nodes[source]["class_type"]][1][output] == wanted[name]
                ahead.append(source)
            else:
                assert type(value) is wanted[name], (name, value)
    return reached


def of(nodes, name):
    return [node["inputs"] for node in nodes.values() if node["class_type"] == name]


@pytest.mark.parametrize("pipeline", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_node_leads_to_what_is_saved(pipeline, count):
    files = [f"{i}.safetensors" for i in range(count)]
    grids = [(1.0, 0.8, 0.6), (0.6, 0.3), (0.3, 0.0)][:count]
    bases = ["a", "b", "b"][:count]
    call = {"height": 64, "width": 96}
    call |= {"FluxPipeline": {"guidance_scale": 2.5}}.get(pipeline, {})
    call |= {"LTXPipeline": {"frame_rate": 24.0, "num_frames": 9}}.get(pipeline, {})
    video = pipeline in ("WanPipeline", "LTXPipeline")
    nodes = workflow(pipeline, files, bases, grids, call=call, video=video)
    (latent,) = (node["inputs"] for node in nodes.values() if "Empty" in node["class_type"])
    assert (latent["height"], latent["width"]) == (64, 96)
    for name, key, value in (
        ("FluxPipeline", "guidance", 2.5),
        ("LTXPipeline", "frame_rate", 24.0),
        ("LTXPipeline", "fps", 24.0),
        ("LTXPipeline", "length", 9),
    ):
        if name == pipeline:
            assert [n["inputs"][key] for n in nodes.values() if key in n["inputs"]] == [value]
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
    assert workflow("WanImageToVideoPipeline", ["a"], ["b"], [(1.0, 0.0)], call={}) is None


def test_sigmas_have_no_exponent():
    nodes = workflow("WanPipeline", ["a"], ["b"], [(1.0, 1 / 3, 1e-5, 0.0)], call={})
    (sigmas,) = of(nodes, "ManualSigmas")
    assert sigmas == {"sigmas": "1, 0.33333333, 0.00001, 0"}


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
