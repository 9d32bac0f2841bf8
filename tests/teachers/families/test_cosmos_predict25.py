"""Cosmos Predict 2.5: texts projected once, and neither torchvision nor a safety checker."""

import pytest
import torch

from pdmd.teachers import CosmosPredict25Teacher
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline
from tests.helpers.tiny_families import close, noise
from tests.helpers.tiny_more_flows import LONG, more


def test_a_text_that_is_projected_already_is_not_projected_again():
    teacher = more("cosmos_predict25")
    raw = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    projected = teacher.backbone.crossattn_proj(raw)
    assert projected.shape == (2, 7, 24)
    assert torch.equal(teacher.backbone.crossattn_proj(projected), projected)
    condition = teacher.encode(teacher.prompts[:2])
    x = noise(teacher, 2)
    values = []
    for rows in (raw, projected):
        condition["prompt"] = rows
        with torch.no_grad():
            values.append(teacher(x, 0.5, condition).value)
    close(*values, 0)


def test_embeddings_of_another_projection_have_another_fingerprint(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_tiny_pipeline("cosmos_predict25", tmp_path)
    options = {**TINY["cosmos_predict25"].options, "text_length": LONG, "meta": True}

    def fingerprint():
        return CosmosPredict25Teacher.from_pretrained(folder, **options).text.fingerprint()

    first = fingerprint()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.weight"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert first is not None and fingerprint() == first
    weights["crossattn_proj.0.weight"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert fingerprint() != first


def test_networks_of_other_versions_raise_an_error():
    from diffusers import CosmosTransformer3DModel

    with torch.device("meta"):
        older = CosmosTransformer3DModel(num_layers=1, in_channels=17, extra_pos_embed_type=None)
        transfer = CosmosTransformer3DModel(
            num_layers=1, in_channels=17, use_crossattn_projection=True, controlnet_block_every_n=7
        )
    for network in (older, transfer):
        with pytest.raises(ValueError, match="only those of Predict 2.5, which project texts"):
            CosmosPredict25Teacher(network)
