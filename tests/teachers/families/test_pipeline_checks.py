"""Pipelines' folders that are something else: rejected before anything is loaded."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdmd.teachers import StableDiffusionTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.families.pipeline_checks import PIPELINES, check_tensor, variant_of
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.vaes import load_decoder
from tests.helpers.exporting import qwen_folder
from tests.helpers.tiny_discrete import family as discrete_family
from tests.helpers.tiny_discrete import sd_pipeline
from tests.helpers.tiny_encoders import clip
from tests.helpers.tiny_families import family, noise, qwen_pipeline
from tests.helpers.tiny_flows import FLOWS, flow

SIZE = {"height": 64, "width": 48, "dtype": "float32"}
NETWORK = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


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


def rewrite(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(*names):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(names)}


def in_codes(state):
    wide = {path for path, value in state.items() if value.ndim > 2}
    scales = {path.replace(".weight", ".weight_scale"): torch.ones(()) for path in wide}
    coded = {path: state[path].to(torch.float8_e4m3fn) for path in wide}
    return state | coded | scales


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (in_codes, "vae has quantised weights"),
        (without("decoder.conv_out"), "lack weights of an AutoencoderKLQwenImage: decoder.conv"),
        (lambda state: state | {"decoder.conv_in.bias": torch.ones(3)}, r"has the shape \(3,\)"),
    ],
)
def test_the_weights_of_a_vae_are_checked_before_it_decodes(folder, change, told, meta):
    rewrite(folder / VAE, change)
    with pytest.raises(ValueError, match=told) as caught:
        load(folder, meta=meta)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_the_file_of_a_vae_is_checked_before_it_decodes(folder):
    (folder / VAE).write_bytes((folder / VAE).read_bytes()[:-100])
    rejected(folder, "cannot load .*/vae")


def test_a_vae_without_weights_is_warned_of(folder):
    (folder / VAE).unlink()
    with pytest.warns(UserWarning, match="the VAE of .* has no weights .*, so that no sample is"):
        teacher = load(folder)
    with pytest.raises(ValueError, match="cannot load .*/vae"), pytest.warns(UserWarning):
        teacher.decode(torch.zeros(1, 4, 8, 6))


@pytest.mark.parametrize(
    "stated",
    [
        {"latents_mean": [0.0, 1.0]},
        {"latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"latents_std": [1.0, 1.0, None, 1.0]},
        {"z_dim": 8},
        {"z_dim": 8, "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
        {"_class_name": "AutoencoderKLWan"},
    ],
)
def test_the_configuration_of_a_vae_is_checked_before_it_decodes(folder, stated):
    edit(folder / "vae" / "config.json", **stated)
    rejected(folder, r"latents_(mean|std) = .*not 4|latents_mean = .*not 8|has the shape|is an")


def test_a_pipeline_with_weights_nowhere_is_one_to_plan_with(folder):
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    assert load(folder, meta=True).latent_shape == (4, 8, 6)


def test_a_pipeline_without_a_vae_is_a_teacher(folder):
    shutil.rmtree(folder / "vae")
    edit(folder / "model_index.json", vae=[None, None])
    assert load(folder).latent_shape == (4, 8, 6)


@pytest.fixture(scope="module")
def saved_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "s"
    sd_pipeline(discrete_family("sd"), text=clip(16)).save_pretrained(folder)
    return folder


@pytest.fixture
def images(saved_images, tmp_path):
    return Path(shutil.copytree(saved_images, tmp_path / "s"))


def load_images(folder):
    return teachers["stable_diffusion"](folder=str(folder), **SIZE)


@pytest.mark.parametrize("value", [None, 0, "0.3", float("nan"), [0.3, 0.3]])
def test_the_scale_of_latents_is_a_number(images, value):
    edit(images / "vae" / "config.json", scaling_factor=value)
    with pytest.raises(ValueError, match="scaling_factor = .*is not a finite number other than 0"):
        load_images(images)


def test_a_vae_of_another_class_is_no_decoder(images):
    from diffusers import AutoencoderTiny

    shutil.rmtree(images / "vae")
    AutoencoderTiny().save_pretrained(images / "vae")
    edit(images / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    told = "the VAE of .* is an AutoencoderTiny, and this teacher's is an AutoencoderKL; give"
    with pytest.raises(ValueError, match=told):
        load_images(images)
    own = StableDiffusionTeacher.from_pretrained(images, decode=torch.sigmoid, **SIZE)
    assert own.decode(torch.zeros(1)) == 0.5


def test_a_vae_with_latents_of_other_channels_is_no_decoder(images):
    from diffusers import AutoencoderKL

    config = AutoencoderKL.load_config(images, subfolder="vae") | {"latent_channels": 8}
    shutil.rmtree(images / "vae")
    AutoencoderKL.from_config(config).save_pretrained(images / "vae")
    told = "the VAE of .* has latents of 8 channels, and the network's have 4; give a pipeline"
    with pytest.raises(ValueError, match=told):
        load_images(images)
    own = StableDiffusionTeacher.from_pretrained(images, decode=torch.sigmoid, **SIZE)
    assert own.latent_shape[0] == 4


def test_a_vae_with_attentions_of_early_names_decodes(images):
    x = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    expected = load_images(images).decode(x)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def early(state):
        for new, old in names.items():
            state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
        return state | {"quant_conv.unused": torch.ones(1)}

    rewrite(images / VAE, early)
    assert any(".proj_attn." in path for path in load_file(images / VAE))
    assert torch.equal(load_images(images).decode(x), expected)


def test_a_sharded_vae_is_checked_by_its_index(images):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(images / "vae")
    (images / VAE).unlink()
    vae.save_pretrained(images / "vae", max_shard_size="20KB")
    load_images(images).decode(torch.zeros(1, 4, 8, 6))
    index = images / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    assert len(set(files.values())) > 1
    rewrite(images / "vae" / files["decoder.conv_out.weight"], in_codes)
    with pytest.raises(ValueError, match="vae has quantised weights"):
        load_images(images)
    edit(index, weight_map={**files, "decoder.conv_out.weight": "../other.safetensors"})
    with pytest.raises(ValueError, match="which is no file beside it"):
        load_images(images)
    edit(index, weight_map=files)
    (images / "vae" / files["decoder.conv_out.weight"]).unlink()
    with pytest.raises(ValueError, match="the VAE of .* lacks its file .*-of-.*; download"):
        load_images(images)


def test_a_vae_of_the_hub_is_not_downloaded_to_be_checked(monkeypatch):
    import huggingface_hub

    def fail(*arguments, **more):
        raise AssertionError("downloaded")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    load_decoder("AutoencoderKL", "someone/not-in-the-cache")


def test_every_pipeline_is_known_to_have_the_vae_of_its_family(folder):
    from pdmd.teachers.families.vaes import _COMPRESSIONS, _is_of_another_family

    for pipelines in PIPELINES.values():
        for name in pipelines - {"DDPMPipeline", "DDIMPipeline", "PNDMPipeline"}:
            edit(folder / "model_index.json", _class_name=name, vae=["diffusers", "Other"])
            assert [_is_of_another_family(vae, folder) for vae in _COMPRESSIONS].count(False) == 1


def only_configurations(tokenizer):
    for path in tokenizer.iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()


@pytest.mark.parametrize("change", [only_configurations, shutil.rmtree])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "QwenImagePipeline"])
def test_a_tokenizer_without_a_vocabulary_encodes_nothing(folder, images, name, change):
    place = images if name == "StableDiffusionPipeline" else folder
    load_text_encoder(name, place, dtype="float32")
    change(place / "tokenizer")
    with pytest.raises(ValueError, match="the tokenizer .*/tokenizer has no vocabulary, .*; down"):
        load_text_encoder(name, place, dtype="float32")


def test_a_tokenizer_whose_vocabulary_is_empty_encodes_nothing(images):
    from transformers import CLIPTokenizer

    CLIPTokenizer(vocab={"<|endoftext|>": 0}, merges=[]).save_pretrained(images / "tokenizer")
    with pytest.raises(ValueError, match="the tokenizer .*/tokenizer has no vocabulary"):
        load_text_encoder("StableDiffusionPipeline", images, dtype="float32")


def test_vocabularies_of_bytes_and_of_few_words_are_some(images):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"<unk>": 0, "四": 1, "五": 2}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", pad_token="<unk>")
    for tokenizer in (ByT5Tokenizer(), few):
        shutil.rmtree(images / "tokenizer")
        tokenizer.save_pretrained(images / "tokenizer")
        kind = ["transformers", type(tokenizer).__name__]
        edit(images / "model_index.json", tokenizer=kind)
        loaded = load_text_encoder("StableDiffusionPipeline", images, dtype="float32")
        assert type(loaded.tokenizer) is type(tokenizer)
