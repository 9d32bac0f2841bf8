"""Stable Diffusion 3: a folder without T5."""

from pdmd.teachers.base import teachers
from tests.helpers.tiny_encoders import encode_sd3, sd3_text
from tests.helpers.tiny_families import close
from tests.helpers.tiny_flows import FLOWS, flow


def test_sd3_goes_without_t5(tmp_path):
    teacher, kind = flow("sd3"), FLOWS["sd3"]
    pipeline = kind.pipeline(teacher, text=sd3_text(full=False))
    pipeline.save_pretrained(tmp_path)
    loaded = teachers.get("sd3")(folder=str(tmp_path), height=64, width=48, dtype="float32")
    condition = loaded.encode(["a cat", None])
    for key, value in encode_sd3(pipeline, ["a cat"]).items():
        close(condition[key], value)
    assert condition["prompt"].shape == (2, 16 + 256, 32) and not condition["prompt"][:, 16:].any()
