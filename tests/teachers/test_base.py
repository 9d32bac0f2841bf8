"""The interface of teachers: batches, defaults, and plugins that register custom ones."""

import pytest
import torch

from pdmd import RectifiedFlow, Teacher, teachers
from pdmd.teachers.base import import_plugins, outline_arguments
from pdmd.teachers.base import teachers as registry


class Identity(Teacher):
    """The smallest teacher: one network, and no conditions."""

    def __init__(self):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(2,))

    def network(self, x_t, t, condition):
        return x_t

    def encode(self, prompts):
        return None


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_a_prediction_does_not_depend_on_the_rest_of_its_batch(name):
    teacher = teachers.get(name)()
    x = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    with torch.no_grad():
        whole = teacher(x, t, teacher.encode([1, 2, 3, 4])).value
        alone = teacher(x[2:3], t[2:3], teacher.encode([3])).value
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


def test_the_defaults_of_a_teacher_are_no_shift_and_the_null_prompt():
    teacher = Identity()
    assert teacher.shift == 1.0 and list(teacher.prompts) == [None]
    assert teacher.conditions([None, None]) is None


def test_standard_guidance_extrapolates_and_replaces_the_whole_condition():
    teacher = teachers.get("mixture")()
    one, zero = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.equal(teacher.guide(one, zero, 3.0), 3 * one)
    assert torch.equal(
        teacher.guide(one, zero, torch.tensor([[2.0], [0.0]]))[:, 0],
        one[:, 0] * torch.tensor([2.0, 0.0]),
    )
    condition, null = teacher.encode([1, 2]), teacher.encode([None])
    assert torch.equal(teacher.unconditional(condition, null)["label"], null["label"].expand(2))


def test_plugins_register_custom_teachers(tmp_path, monkeypatch):
    (tmp_path / "custom_plugin.py").write_text(
        "from pdmd.teachers import register\n\nregister('custom')(dict)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import_plugins(["custom_plugin"])
        assert registry["custom"] is dict
    finally:
        registry.remove("custom")
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    for name in ("broken_plugin", "no_such_plugin"):
        with pytest.raises(ValueError, match=f"cannot import the plugin '{name}' .*; install it"):
            import_plugins([name])


def test_families_are_built_on_the_meta_device_and_packaged_networks_are_not():
    assert outline_arguments("wan") == {"meta": True}
    assert outline_arguments("mixture") == {}
    with pytest.raises(ValueError, match="unknown teacher"):
        outline_arguments("nothing")
