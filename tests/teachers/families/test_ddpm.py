"""DDPM: folders of both kinds."""

import pytest
import torch

from pdmd.teachers.base import teachers
from tests.helpers.tiny_discrete import ddim_pipeline, family
from tests.helpers.tiny_families import close, noise


@pytest.mark.parametrize("root", [False, True])
def test_ddpm_loads_from_its_pipelines_folder(tmp_path, root):
    teacher = family("ddpm")
    ddim_pipeline(teacher).save_pretrained(tmp_path)
    if root:  # as the first pipelines of diffusers are
        for folder in ("unet", "scheduler"):
            for path in (tmp_path / folder).iterdir():
                path.rename(tmp_path / path.name)
            (tmp_path / folder).rmdir()
    loaded = teachers.get("ddpm")(folder=str(tmp_path), height=16, width=24)
    x = noise(teacher, 2)
    with torch.no_grad():
        close(loaded(x, 0.3).value, teacher(x, 0.3).value)  # weights lie otherwise in memory
    assert loaded.kind == "epsilon" and loaded.encode([None, None]) is None
    close(loaded.decode(x), (x / 2 + 0.5).clamp(0, 1), 0)
    with pytest.raises(ValueError, match="there are no classes"):
        loaded.encode(["a cat"])
