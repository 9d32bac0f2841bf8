"""Outlines: every rank's shards are those of the whole network, whatever they are read from."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pdmd.distillation.adapters import LowRank, adapt
from pdmd.distributed.materialization import check_sources, materialize, refer
from pdmd.distributed.weight_sources import (
    UniformDraws,
    hollow,
    is_outline,
    outline,
    whole,
)
from pdmd.teachers import QwenImageTeacher
from pdmd.teachers.families.flux import FluxTeacher
from tests.distributed.ranks import run_ranks
from tests.helpers.tiny_families import QWEN
from tests.helpers.tiny_pipelines import FLUX

CPU = torch.device("cpu")


def perceptron():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Linear(3, 5))
    network[3].weight = network[0].weight  # tied
    return network


def test_an_outline_has_no_memory_and_reads_the_networks_weights():
    network = perceptron()
    copied = copy.deepcopy(outline(network))
    assert is_outline(copied) and not is_outline(network)
    assert copied[3].weight is copied[0].weight
    materialize(copied, CPU)
    for name, value in network.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value), name
    assert copied[0].weight.data_ptr() != network[0].weight.data_ptr()


def test_a_hollow_network_gets_its_values_back():
    network, expected = perceptron(), perceptron().state_dict()
    hollow(network)
    assert is_outline(network) and network[3].weight is network[0].weight
    materialize(network, CPU)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_a_meta_network_without_weights_is_an_error_that_names_a_parameter():
    with torch.device("meta"):
        network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear was built on the meta device .* weight and 1"):
        check_sources(network)


def test_adapters_of_an_outline_draw_the_same_factors():
    teacher = QwenImageTeacher.from_config(**QWEN)
    plain = adapt(teacher, LowRank(rank=2), seed=3)
    drawn = adapt(outline(teacher), LowRank(rank=2), seed=3)
    materialize(drawn, CPU)
    assert plain.state_dict().keys() == drawn.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(drawn.state_dict()[name], value), name


def test_draws_do_not_depend_on_the_order_in_which_they_are_read():
    draws = UniformDraws(5)
    sources = [draws.add((2, 17 + i), 0.5) for i in range(4)]
    last = sources[3].read(whole((2, 20)))
    generator = torch.Generator().manual_seed(5)
    for i, source in enumerate(sources):
        expected = torch.empty(2, 17 + i).uniform_(-0.5, 0.5, generator=generator)
        assert torch.equal(source.read(whole((2, 17 + i))), expected)
    assert torch.equal(last, expected)


def test_a_teachers_folder_is_outlined_with_its_weights_narrowed(tmp_path):
    network = QwenImageTeacher.from_config(**QWEN)
    network.backbone.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    size = {"height": 64, "width": 48, "shift": 1.0}
    eager, lazy = (QwenImageTeacher.from_pretrained(tmp_path, meta=m, **size) for m in (0, 1))
    assert is_outline(lazy)
    materialize(lazy, CPU)
    for name, value in eager.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(lazy.state_dict()[name], value), name


# ------------------------------------------------------------------------------- on several ranks


def families():
    qwen = QwenImageTeacher.from_config(**{**QWEN, "num_attention_heads": 4})
    flux = FluxTeacher.from_config(**FLUX)  # with packed weights
    return {"qwen": qwen, "flux": flux}


def placed_as_whole(degrees):
    """Returns the names of tensors whose shards are not those of the whole network."""
    from pdmd.distributed.titan import TitanRuntime

    wrong = []
    for name, teacher in families().items():
        runtime = TitanRuntime(**degrees)
        start = runtime.placement.outline(teacher)
        frozen = runtime.placement.frozen(start)
        again = runtime.placement.outline(teacher).trainable_copy()
        refer(again, frozen)
        trained = runtime.placement.trained(again)
        adapted = adapt(start, LowRank(rank=2, targets=("to_q", "to_v")), seed=1)
        plain = adapt(families()[name], LowRank(rank=2, targets=("to_q", "to_v")), seed=1)
        roles = runtime.placement.trained(adapted)
        for network, reference in ((frozen, teacher), (trained, teacher), (roles, plain)):
            assert all(isinstance(p, DTensor) for p in network.parameters())
            full = runtime.states.full(network)
            for key, value in reference.state_dict().items():
                if not torch.equal(full[key], value):
                    wrong.append((name, key))
    return wrong


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", [{}, {"tp": 2}], ids=["fsdp", "tp"])
def test_shards_on_two_ranks_are_those_of_the_whole_network(degrees):
    assert run_ranks(placed_as_whole, 2, degrees) == [[], []]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("degrees", [{"tp": 2}, {"dp_replicate": 2}], ids=["2d", "hsdp"])
def test_shards_on_four_ranks_are_those_of_the_whole_network(degrees):
    assert run_ranks(placed_as_whole, 4, degrees) == [[]] * 4
