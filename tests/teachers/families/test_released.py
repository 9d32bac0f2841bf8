"""Released models: the numbers of parameters of their cards, from the sizes that ship."""

import pytest

from pdmd.cli.config import TeacherConfig
from pdmd.cli.plan import outlined
from pdmd.teachers.families.released import RELEASED, equal_blocks, released_arguments

COUNTS = {
    ("qwen_image", "Qwen/Qwen-Image"): 20.43,
    ("qwen_image_edit", "Qwen/Qwen-Image-Edit-2511"): 20.43,
    ("wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"): 2 * 14.29,
    ("wan_i2v", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"): 2 * 14.29,
    ("wan_i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"): 16.39,
    ("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"): 5.00,
    ("wan_i2v", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"): 5.00,
    ("flux", "black-forest-labs/FLUX.1-dev"): 11.90,
    ("sd3", "stabilityai/stable-diffusion-3.5-large"): 8.06,
    ("z_image", "Tongyi-MAI/Z-Image"): 6.15,
    ("ltx", "Lightricks/LTX-Video"): 1.92,
    ("ltx2", "Lightricks/LTX-2"): 18.88,
    ("ltx2", "diffusers/LTX-2.3-Diffusers"): 18.99,
    ("cosmos_predict25", "nvidia/Cosmos-Predict2.5-2B"): 2.06,
    ("cosmos_predict25", "nvidia/Cosmos-Predict2.5-14B"): 14.37,
    ("sana", "Efficient-Large-Model/Sana_1600M_1024px_diffusers"): 1.60,
    ("sana", "Efficient-Large-Model/Sana_600M_1024px_diffusers"): 0.59,
    ("sana", "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers"): 4.72,
    ("chroma", "lodestones/Chroma1-HD"): 8.90,
    ("flux2", "black-forest-labs/FLUX.2-dev"): 32.22,
    ("flux2_klein", "black-forest-labs/FLUX.2-klein-4B"): 3.88,
    ("flux2_klein", "black-forest-labs/FLUX.2-klein-9B"): 9.08,
    ("cogvideox", "zai-org/CogVideoX-2b"): 1.69,
    ("cogvideox", "zai-org/CogVideoX-5b"): 5.57,
    ("cogvideox", "zai-org/CogVideoX1.5-5B"): 5.57,
    ("hunyuan_video15", "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"): 8.33,
    ("kandinsky5", "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers"): 2.01,
    ("kandinsky5", "kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers"): 19.31,
    ("kandinsky5_image", "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"): 6.02,
}
"""Billions of parameters of the weights on the hub; of Cosmos and LTX-2, of the configurations by
which diffusers converts them."""
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
