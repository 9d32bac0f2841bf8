"""Reading the parts of a pipeline."""

from fnmatch import fnmatch

import pytest

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
