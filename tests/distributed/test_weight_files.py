"""Weight files: written from shards as the library reads them, and read by slices."""

import pytest
import torch
from torch import nn

from pdmd import PhasePlan, Student
from pdmd.distillation.experts import OdeExpert
from pdmd.distributed.materialization import materialize
from pdmd.distributed.weight_files import WeightFiles, load_weights, whole_tensors, write_tensors
from pdmd.distributed.weight_sources import is_outline, outline
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from tests.distributed.ranks import run_ranks

CPU = torch.device("cpu")


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_files_are_written_as_the_library_reads_them(tmp_path):
    from safetensors.torch import load_file

    network = perceptron().double()
    network.register_buffer("empty", torch.zeros(0, 3, dtype=torch.bfloat16))
    write_tensors(tmp_path / "x.safetensors", whole_tensors(network), metadata={"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype


def test_a_type_that_is_not_written_is_named_before_the_file_is(tmp_path):
    network = perceptron()
    network.register_buffer("scaled", torch.zeros(3).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="scaled is in float8_e4m3fn, which is not written"):
        write_tensors(tmp_path / "x.safetensors", whole_tensors(network))
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_load_whole_or_as_places_in_files(tmp_path):
    network = perceptron()
    write_tensors(tmp_path / "x.safetensors", whole_tensors(network))
    files = WeightFiles(lambda: [tmp_path / "x.safetensors"])
    loaded, other = outline(perceptron()), nn.Linear(2, 2)
    load_weights(loaded, files)
    assert is_outline(loaded)
    read = {tensor.name: tensor.read() for tensor in whole_tensors(loaded)}
    materialize(loaded, CPU)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert torch.equal(read[name], value), name
    with pytest.raises(ValueError, match="unexpected key 0.bias"):
        load_weights(other, files)


def digits():
    torch.manual_seed(0)
    return DigitsTeacher(ImageTransformer(width=16, depth=2, heads=2), std=0.7)


def saved(folder, degrees):
    """Saves a student over networks that are sharded on all ranks; returns the error."""
    from pdmd.distributed.titan import TitanRuntime

    placement = TitanRuntime(**degrees).placement
    start = placement.outline(digits())
    experts = [
        OdeExpert(placement.trained(start.trainable_copy()), phase)
        for phase in PhasePlan.uniform(2)
    ]
    try:
        Student(experts).save(folder)
    except OSError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_two_ranks_save_a_student_whole(tmp_path):
    assert run_ranks(saved, 2, tmp_path / "student", {}) == ["", ""]
    student = Student.load(tmp_path / "student", template=digits())
    for expert in student.experts:
        for name, value in digits().state_dict().items():
            assert torch.equal(expert.denoiser.state_dict()[name], value), name
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.distributed
def test_a_save_that_fails_on_the_first_rank_is_an_error_on_all(tmp_path):
    (tmp_path / "file").write_text("")
    for error in run_ranks(saved, 2, tmp_path / "file" / "student", {"tp": 2}):
        assert "student could not be written" in error
