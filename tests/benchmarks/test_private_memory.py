import torch

from pdmd.benchmarks.private_memory import PrivateMemory, private_bytes


def test_the_peak_of_a_stage_is_what_it_allocated():
    with PrivateMemory(interval=0.001) as memory:
        memory.stage("first")
        x = torch.ones(16 << 20, dtype=torch.uint8)
        memory.stage("second")
        del x
    assert memory.peaks["first"] >= 16 << 20
    assert 0 < private_bytes() < 100 << 30
