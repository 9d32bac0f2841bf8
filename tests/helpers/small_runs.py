"""A small distillation of a mixture, and a recorder that stops a run."""

import torch

from pdmd import (
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    PhasePlan,
    Student,
)
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill

SOURCE = {
    "teacher": "mixture",
    "arguments": {"dim": 2, "classes": 2, "modes": 2},
    "guidance": 1.0,
    "network": {"name": "mlp", "arguments": {"dim": 2, "classes": 2, "width": 8}},
}


def small(**changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    settings = dict(
        init=FromDenoiser(network), updates=6, fake_updates=2, batch_size=16, source=SOURCE
    )
    return distill(
        teacher, changes.pop("plan", PhasePlan.uniform(2, steps=2)), **{**settings, **changes}
    )


def weights(student):
    return torch.cat([p.flatten() for p in student.parameters()])


class StopAt(Recorder):
    def __init__(self, checkpointer, after):
        self.checkpointer, self.after = checkpointer, after

    def on_update(self, update):
        self.after -= 1
        self.checkpointer.stop_requested = self.after == 0


def untrained_student(steps=1, seed=0):
    torch.manual_seed(seed)
    plan = PhasePlan.uniform(2, steps=steps)
    experts = [
        OdeExpert(MlpDenoiser.rectified_flow(dim=2, classes=2, width=8), phase) for phase in plan
    ]
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    return Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=SOURCE)
