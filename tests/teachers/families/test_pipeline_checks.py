"""Pipelines' folders that are something else: rejected before anything is loaded."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdmd.teachers.base import teachers
from pdmd.teachers.families.pipeline_checks import check_tensor, variant_of
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.vaes import load_decoder
from tests.helpers.exporting import qwen_folder
from tests.helpers.tiny_families import family, noise, qwen_pipeline
from tests.helpers.tiny_flows import FLOWS, flow

SIZE = {"height": 64, "width": 48, "dtype": "float32"}
NETWORK = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return qwen_folder(tmp_path_factory.mktemp("pipeline") / "q")


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "q")
    return tmp_path / "q"


def load(folder, **more):
    return teachers["qwen_image"](folder=str(folder), **SIZE, **more)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rejected(folder, told):
    with pytest.raises(ValueError, match=told) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(
    "name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline", "X"]
)
def test_a_pipeline_of_another_class(folder, name, meta):
    edit(folder / "model_index.json", _class_name=name)
    with pytest.raises(ValueError, match=f"is a {name}, which calls .* a QwenImagePipeline;"):
        load(folder, meta=meta)


def test_an_editing_pipeline_of_flux(tmp_path):
    FLOWS["flux"].pipeline(flow("flux")).save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", _class_name="FluxKontextPipeline")
    with pytest.raises(ValueError, match="is a FluxKontextPipeline"):
        teachers["flux"](folder=str(tmp_path), **SIZE)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_quantised_weights_are_no_values(folder, dtype):
    state = load_file(folder / NETWORK)
    path = next(key for key in state if key.endswith("to_q.weight"))
    state[path] = state[path].to(dtype)
    save_file(state, folder / NETWORK, metadata={"format": "pt"})
    rejected(folder, f"quantised weights .*to_q.weight in {str(dtype).removeprefix('torch.')}")


def test_a_scale_beside_a_weight(folder):
    state = load_file(folder / NETWORK)
    path = next(key for key in state if key.endswith("to_q.weight"))
    save_file({**state, f"{path}_scale": torch.ones(1)}, folder / NETWORK)
    rejected(folder, "quantised weights .*weight_scale")


def test_a_quantisation_that_the_configuration_names(folder):
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(folder / "transformer" / "config.json", quantization_config=config)
    rejected(folder, r"is quantised \(bitsandbytes\)")


def test_integers_where_integers_belong_are_read():
    check_tensor("x", "positions", torch.arange(3), torch.int64)
    check_tensor("x", "weight", torch.ones(3).half(), torch.float32)


def test_an_adapter_that_was_saved_unmerged(folder):
    from peft import LoraConfig

    network = copy.deepcopy(family("qwen_image").backbone)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / NETWORK)
    rejected(folder, r"adapter that is not merged .*; merge it")


def test_a_network_with_an_adapter_is_no_teacher():
    from peft import LoraConfig

    plain = family("qwen_image")
    network = copy.deepcopy(plain.backbone)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"not merged \(transformer_blocks.0.attn.to_q\)"):
        plain.with_backbone(network)


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_pickled_weights_are_not_read(folder, tmp_path, part):
    class Exploit:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploited",))

    for path in (folder / part).glob("*.safetensors"):
        path.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(Exploit(), folder / part / name)
    use = {
        "text_encoder": lambda: load_text_encoder("QwenImagePipeline", folder, dtype="float32"),
        "vae": lambda: load_decoder("AutoencoderKLQwenImage", folder)(torch.zeros(1, 4, 8, 6)),
        "transformer": lambda: load(folder),
    }
    with pytest.raises(ValueError, match=rf"{part} has its weights in {name}, a pickle.*convert"):
        use[part]()
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "text_encoder"])
def test_python_files_of_a_pipeline_are_not_run(folder, tmp_path, part):
    evil = tmp_path / "exploited"
    (folder / part / "evil.py").write_text(f"open({str(evil)!r}, 'w')\nclass X: pass\n")
    edit(folder / "model_index.json", **{part: ["evil", "X"]})
    rejected(folder, rf"comes with Python code \({part}/evil.py\)")
    with pytest.raises(ValueError, match="comes with Python code"):
        load_text_encoder("QwenImagePipeline", folder, dtype="float32")
    assert not evil.exists()


def test_a_pipeline_that_a_python_file_defines(folder):
    edit(folder / "model_index.json", _class_name=["pipeline", "Mine"])
    rejected(folder, r"comes with Python code \(pipeline\)")


@pytest.mark.parametrize("library", ["os", "subprocess", "pdmd", "..", "a.b", ""])
def test_parts_come_from_diffusers_and_transformers(folder, library):
    edit(folder / "model_index.json", scheduler=[library, "Popen"])
    rejected(folder, "takes its scheduler from the package")


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 50_000, "\ufeff{}"])
def test_a_damaged_index(folder, text):
    (folder / "model_index.json").write_text(text)
    rejected(folder, "model_index.json is damaged|cannot load")


@pytest.mark.parametrize("more", [{}, {"max_shard_size": "20KB"}])
def test_weights_in_one_variant_load(tmp_path, more):
    teacher = family("qwen_image")
    qwen_pipeline(teacher).save_pretrained(tmp_path / "q", variant="fp16", **more)
    loaded = load(tmp_path / "q")
    x, condition = noise(teacher, 2), teacher.encode(["random 0", "random 1"])
    assert torch.equal(loaded(x, 0.5, condition).value, teacher(x, 0.5, condition).value)
    loaded.decode(x)


def test_several_variants_are_named(folder):
    for name in ("fp16", "bf16"):
        copied = (folder / NETWORK).with_suffix(f".{name}.safetensors")
        shutil.copyfile(folder / NETWORK, copied)
    assert variant_of(folder, "transformer", "diffusion_pytorch_model") is None
    (folder / NETWORK).unlink()
    rejected(folder, "in the variants bf16, fp16 and none without")
