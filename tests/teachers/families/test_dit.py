"""DiT: folders and class names."""

import json

import pytest
import torch

from pdmd.teachers.base import teachers
from tests.helpers.tiny_discrete import class_pipeline, decoded, family
from tests.helpers.tiny_families import close, noise


def test_dit_loads_from_its_pipelines_folder(tmp_path):
    teacher = family("dit")
    class_pipeline(teacher).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = {"3": "a cat, tabby", "7": "a dog"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = tmp_path / "transformer" / "config.json"  # the released one names this class
    content = {**json.loads(config.read_text()), "_class_name": "Transformer2DModel"}
    config.write_text(json.dumps(content))
    loaded = teachers.get("dit")(folder=str(tmp_path), dtype="float32")
    condition = loaded.encode(["tabby", "a dog", 999, "5", None])
    assert condition["label"].tolist() == [3, 7, 999, 5, 1000]
    x = noise(teacher, 5)
    with torch.no_grad():
        close(loaded(x, 0.3, condition).value, teacher(x, 0.3, condition).value, 0)
        close(loaded(x, 0.3).value, teacher(x, 0.3, teacher.encode([None] * 5)).value, 0)
    close(loaded.decode(x), decoded(x))
    with pytest.raises(ValueError, match="prompt 'a horse' is not a class from 0 to 999"):
        loaded.encode(["a horse"])
