"""Placement in one process: precision, wide parameters and activation checkpointing."""

import torch

from pdmd import MlpDenoiser
from pdmd.distributed.activation_checkpointing import recomputes
from pdmd.distributed.collectives import local_part
from pdmd.distributed.placement import LocalPlacement, widen
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer


def placement(precision=torch.float32, activation_checkpointing=False):
    return LocalPlacement(
        torch.device("cpu"), precision, activation_checkpointing=activation_checkpointing
    )


def test_trainable_parameters_are_float32_and_frozen_ones_keep_their_dtype():
    place = placement(torch.bfloat16)
    trained = MlpDenoiser.rectified_flow(dim=2, width=8).to(torch.bfloat16)
    frozen = MlpDenoiser.rectified_flow(dim=2, width=8).to(torch.bfloat16)
    assert place.trained(trained) is trained and place.frozen(frozen) is frozen
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert trained.precision == frozen.precision == torch.bfloat16


def test_release_restores_precision_and_units():
    teacher = DigitsTeacher(ImageTransformer(width=16, depth=2, heads=2), std=0.7)
    classes = [type(module) for module in teacher.modules()]
    place = placement(torch.bfloat16, activation_checkpointing=True)
    place.frozen(teacher)
    assert recomputes(teacher)
    place.release(teacher)
    assert not recomputes(teacher) and teacher.precision == torch.float32
    assert [type(module) for module in teacher.modules()] == classes


def test_widening_keeps_float64_and_integers():
    network = torch.nn.ParameterDict(
        {
            "narrow": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
            "wide": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
            "count": torch.nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False),
        }
    )
    widen(network)
    assert network["narrow"].dtype == torch.float32 and network["wide"].dtype == torch.float64
    assert network["count"].dtype == torch.int64


def test_the_local_part_of_a_plain_tensor_is_itself():
    value = torch.ones(2)
    assert local_part(value) is value
