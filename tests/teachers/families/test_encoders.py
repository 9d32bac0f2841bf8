"""Encoders of pipelines: loaded whole, and nothing that their files name is run or followed."""

import json

import pytest

from pdmd.teachers.families.encoders import check_pretrained, load_encoder
from tests.helpers.tiny_encoders import t5


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
