"""Reading the parts of a pipeline."""

from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch

from pdmd.export.bases import open_base_pipeline
from pdmd.teachers import FluxTeacher
from pdmd.teachers.base import teachers
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "GatedRepoError",
            "someone/flux is gated; accept its terms on https://huggingface.co/someone/flux, and "
            "log in by 'hf auth login' or set HF_TOKEN",
        ),
        (
            "RepositoryNotFoundError",
            "someone/flux is neither a folder nor a repository that you may read; correct the "
            "name, or log in by 'hf auth login' or set HF_TOKEN",
        ),
    ],
)
def test_a_repository_without_access_says_how_to_gain_it(monkeypatch, kind, message):
    """diffusers calls a gated repository no valid name, and the way in is in its second line."""
    import httpx
    from huggingface_hub import errors

    def refused(*args, **more):
        request = httpx.Request("GET", "https://huggingface.co/someone/flux")
        text = "401 Client Error. (Request ID: a)\n\nCannot access it."
        raise getattr(errors, kind)(text, response=httpx.Response(401, request=request))

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", refused)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(ValueError) as raised:
        teachers.get("flux")(folder="someone/flux")
    assert str(raised.value) == f"cannot load someone/flux/transformer: {message}"
    with pytest.raises(ValueError, match=f"^{message}, or name the pipeline's folder with --base"):
        open_base_pipeline(SimpleNamespace(source=None), FluxTeacher.layout, "someone/flux")
