"""Encoders of pipelines: loaded whole, as values; nothing in their files is run or followed."""

import json

import pytest

from pdmd.teachers.families.encoders import check_pretrained, load_encoder
from pdmd.teachers.families.text_pipelines import load_text_encoder
from tests.helpers.tiny_encoders import flux_text, t5
from tests.helpers.tiny_flows import FLOWS, flow


@pytest.fixture
def folder(tmp_path):
    t5(16)[1].save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def state(folder, **more):
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def load(folder, name="T5EncoderModel"):
    import torch

    return load_encoder(name, folder, "text_encoder", dtype=torch.bfloat16)


def test_a_whole_encoder_is_loaded_and_what_is_no_model_is_left_to_its_pipeline(folder):
    import torch

    assert load(folder).dtype == torch.bfloat16
    assert load(folder, "T5Tokenizer") is None and load(folder, "nothing") is None


@pytest.mark.parametrize(
    "stated",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "someone/kernel@main:forward"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"experts_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"attn_implementation": {"text_config": "someone/kernel"}},
    ],
)
def test_kernels_of_the_hub_are_not_run(folder, stated):
    state(folder, **stated)
    with pytest.raises(ValueError, match="names code of the hub"):
        load(folder)
    with pytest.raises(ValueError, match="names code of the hub"):
        check_pretrained(folder / "text_encoder")


def test_an_adapter_does_not_lead_to_another_base(folder):
    config = {"peft_type": "LORA", "base_model_name_or_path": "someone/other"}
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="adapter that is not merged"):
        load(folder)


@pytest.mark.parametrize("file", ["../../other.safetensors", "/other.safetensors", "..", 3, None])
def test_shards_lie_beside_their_index(folder, file):
    (folder / "text_encoder" / "model.safetensors").rename(folder / "other.safetensors")
    index = folder / "text_encoder" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"shared.weight": file}}))
    with pytest.raises(ValueError, match="is no file beside it"):
        load(folder)


def test_weights_that_are_missing_are_not_random(folder):
    with pytest.raises(ValueError, match="lack weights of a BertModel, which would be random"):
        load(folder, "BertModel")


def rewrite(folder, change, name="text_encoder/model.safetensors"):
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def scaled(weights, scale):
    """Returns weights in 8 bits with scales beside them."""
    import torch

    found = {}
    for path, value in weights.items():
        if value.ndim == 2 and "SelfAttention" in path:
            top = value.abs().max() / 448
            found[path] = (value / top).to(torch.float8_e4m3fn)
            found[path.replace("weight", scale)] = top.clone()
        else:
            found[path] = value
    return found


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "scale_weight"])
def test_codes_with_scales_are_no_values(folder, scale):
    rewrite(folder, lambda weights: scaled(weights, scale))
    with pytest.raises(ValueError, match=r"text_encoder has quantised weights .*; give") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8"])
@pytest.mark.parametrize("stated", [{}, {"quantization_config": {"quant_method": "unknown"}}])
def test_codes_alone_are_no_values(folder, dtype, stated):
    import torch

    cast = getattr(torch, dtype)
    state(folder, **stated)
    rewrite(folder, lambda w: {k: v.to(cast) if v.ndim == 2 else v for k, v in w.items()})
    with pytest.raises(ValueError, match=f"has quantised weights .*weight in {dtype}"):
        load(folder)


def test_a_quantisation_that_the_library_dequantises_is_left_to_it(folder):
    state(folder, quantization_config={"quant_method": "fp8", "weight_block_size": None})
    rewrite(folder, lambda weights: scaled(weights, "weight_scale_inv"))
    try:
        load(folder)
    except Exception as error:  # without the accelerator that it needs
        assert "quantised weights" not in str(error)


def test_codes_in_shards_and_variants_are_found(folder):
    import torch

    t5(16)[1].save_pretrained(folder / "text_encoder", variant="fp16", max_shard_size="1KB")
    names = sorted(path.name for path in (folder / "text_encoder").glob("*-of-*.safetensors"))
    assert len(names) > 1
    for name in names:
        cast = lambda w: {k: v.to(torch.int8) if v.ndim == 2 else v for k, v in w.items()}  # noqa: E731
        rewrite(folder, cast, f"text_encoder/{name}")
    assert load(folder) is not None  # of the file without a variant, which is not quantised
    with pytest.raises(ValueError, match="has quantised weights"):
        load_encoder(
            "T5EncoderModel", folder, "text_encoder", dtype=torch.bfloat16, variant="fp16"
        )


def test_positions_and_other_parts_of_a_model_are_no_codes(folder):
    import torch

    more = {"position_ids": torch.arange(4)[None], "logit_scale": torch.tensor(2.0)}
    rewrite(folder, lambda weights: weights | more)
    assert load(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_every_text_encoder_has_its_own_variant(tmp_path, part):
    import torch

    FLOWS["flux"].pipeline(flow("flux"), text=flux_text()).save_pretrained(tmp_path)
    plain = load_text_encoder("FluxPipeline", tmp_path, dtype="float32")
    file = tmp_path / part / "model.safetensors"
    file.rename(file.with_suffix(".fp16.safetensors"))
    loaded = load_text_encoder("FluxPipeline", tmp_path, dtype="float32")
    for key, weight in getattr(plain, part).state_dict().items():
        assert torch.equal(weight, getattr(loaded, part).state_dict()[key])
    file.with_suffix(".fp16.safetensors").unlink()
    with pytest.raises(ValueError, match=f"cannot load .*/{part} "):
        load_text_encoder("FluxPipeline", tmp_path, dtype="float32")
