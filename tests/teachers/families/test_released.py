"""Released models: the numbers of parameters of their cards, from the sizes that ship."""

import pytest

from pdmd.cli.config import TeacherConfig
from pdmd.cli.plan import outlined
from pdmd.teachers.families.released import RELEASED, equal_blocks, released_arguments

COUNTS = {
    ("qwen_image", "Qwen/Qwen-Image"): 20.43,
    ("wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"): 2 * 14.29,
    ("wan_i2v", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"): 2 * 14.29,
    ("wan_i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"): 16.39,
    ("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"): 5.00,
    ("wan_i2v", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"): 5.00,
    ("flux", "black-forest-labs/FLUX.1-dev"): 11.90,
    ("sd3", "stabilityai/stable-diffusion-3.5-large"): 8.06,
    ("z_image", "Tongyi-MAI/Z-Image"): 6.15,
    ("ltx", "Lightricks/LTX-Video"): 1.92,
}
"""Billions of parameters of the weights on the hub."""
FAST = ("qwen_image", "ltx")


@pytest.mark.parametrize(
    ("name", "folder"),
    [pytest.param(*key, marks=() if key[0] in FAST else pytest.mark.slow) for key in COUNTS],
)
def test_a_listed_model_has_its_released_number_of_parameters(name, folder):
    arguments = {"folder": folder, "embeddings": "nowhere", "dtype": "bfloat16"}
    teacher = outlined(TeacherConfig(name=name, arguments=arguments))
    count = sum(p.numel() for p in teacher.parameters())
    assert count / 1e9 == pytest.approx(COUNTS[name, folder], abs=0.006)


def test_what_is_said_of_a_sample_replaces_the_sizes_that_are_listed():
    own = released_arguments("qwen_image", {"folder": "Qwen/Qwen-Image", "text_length": 64})
    assert own == {"text_length": 64}
    assert released_arguments("qwen_image", {"folder": "nowhere"}) is None
    assert equal_blocks("qwen_image", {"folder": "Qwen/Qwen-Image"}) == 60
    assert equal_blocks("flux", {"folder": "black-forest-labs/FLUX.1-dev"}) == 0  # two kinds
    assert equal_blocks("digits", {}) == 0
    assert all("/" in name for name in RELEASED)
