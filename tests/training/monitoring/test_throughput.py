"""Throughput: counted operations, and time by role."""

import time

import pytest
import torch

from pdmd.training.monitoring.throughput import RoleClock, Throughput, peak_flops
from pdmd.training.session import Session
from tests.training.test_loop import Names, build


def test_a_clock_adds_the_time_of_a_role_until_it_is_read():
    clock = RoleClock(torch.device("cpu"))
    for _ in range(2):
        with clock.role("fake"):
            time.sleep(0.01)
    assert 0.02 <= clock.read()["fake"] < 1
    assert clock.read() == {}


def test_operations_are_those_of_the_evaluations_that_the_account_counts():
    trainer = build(Names(every=100))
    found = []
    recorder = trainer.session.recorder
    recorder.interval = 2
    recorder.on_throughput = lambda phase, update, values: found.append((update, values))
    trainer.session = Session(recorder=recorder)
    trainer._count_evaluations([e.denoiser for e in trainer.experts], trainer.fakes[0])
    monitor = Throughput()
    per_cycle = []
    for _ in range(4):
        before = trainer.session.account.forward_equivalents
        trainer.cycle()
        per_cycle.append(trainer.session.account.forward_equivalents - before)
        monitor.on_update(trainer.observed(2))
    assert [update for update, _ in found] == [2, 4]
    ((_, first), (_, second)) = found
    for values, updates in ((first, 1), (second, 2)):
        seconds = values["throughput/seconds_per_update"] * updates
        flops = values["throughput/tflops_per_device"] * 1e12 * seconds
        evaluated = sum(per_cycle[1:2] if updates == 1 else per_cycle[2:4])
        assert flops == pytest.approx(evaluated * monitor._flops, rel=1e-6)
        samples = trainer.rollouts.batch_size * updates
        assert values["throughput/samples_per_second"] * seconds == pytest.approx(samples)
        assert 0 < values["seconds/fake"] + values["seconds/generator"] <= seconds
    linear = 2 * 32 * 32  # operations of one token in one square layer of the network
    assert monitor._flops > 16 * linear


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
