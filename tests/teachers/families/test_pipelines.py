"""Reading the parts of a pipeline."""

from fnmatch import fnmatch

import pytest
import torch

from pdmd.teachers.families import pipelines


@pytest.mark.parametrize("subfolder", ["unet", ""])
def test_weights_are_downloaded_without_their_variants(monkeypatch, subfolder):
    patterns = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: patterns.extend(allow_patterns),
    )
    with pytest.raises(TypeError):  # nothing was downloaded
        pipelines._paths("someone/model", subfolder)
    at, stem = f"{subfolder}/" * bool(subfolder), "diffusion_pytorch_model"
    files = {
        f"{at}{stem}.safetensors": True,
        f"{at}{stem}.safetensors.index.json": True,
        f"{at}{stem}-00001-of-00002.safetensors": True,
        f"{at}{stem}.fp16.safetensors": False,
        f"{at}{stem}.non_ema.safetensors": False,
        f"{at}{stem}.bin": False,
        f"vae/{stem}.safetensors": False,
    }
    assert {file: any(fnmatch(file, p) for p in patterns) for file in files} == files


def test_networks_without_weights_have_no_memory_that_is_not_initialized():
    sizes = {"dim": 32, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "n_refiner_layers": 1}
    sizes |= {"axes_dims": [8, 12, 12], "axes_lens": [32, 32, 32], "cap_feat_dim": 16}
    first, again = (
        pipelines.build_part("ZImageTransformer2DModel", sizes, dtype="float32", seed=3)
        for _ in range(2)
    )
    for name in ("x_pad_token", "cap_pad_token"):
        value = getattr(first, name)
        assert 0 < value.abs().max() < 0.2 and torch.equal(value, getattr(again, name))
