"""Small runs that fail in a known way, and one that does not."""

import torch
from torch import nn

from pdmd import (
    AdamRecipe,
    DistributionMatching,
    Objective,
    PhasePlan,
    RectifiedFlow,
    Session,
    Teacher,
    distill,
)
from pdmd.randomness import RankGenerator
from pdmd.teachers.mixture import encode_labels
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.learning_rates import Constant
from pdmd.training.monitoring.probes import HealthProbe
from pdmd.training.monitoring.recorder import RunRecorder
from pdmd.training.rollouts import Rollouts
from pdmd.typing import expand


class Gaussians(Teacher):
    r"""A Gaussian for each of three classes, whose means move from frame to frame.

    The network is the exact posterior mean with the mean and the standard deviation of each value
    as parameters, and a gain that is 0 in the teacher, by which experts keep their noise.
    """

    prompts = (0, 1, 2)

    def __init__(self, shape=(2, 4, 2, 2), std=0.5):
        super().__init__(schedule=RectifiedFlow(), kind="x0", latent_shape=shape)
        generator = RankGenerator.make(5)
        self.mean = nn.Parameter(torch.randn((3, *shape), generator=generator))
        self.log_std = nn.Parameter(torch.full(shape, std).log())
        self.gain = nn.Parameter(torch.zeros(shape))

    def encode(self, prompts):
        return encode_labels(prompts, 3)

    def network(self, x_t, t, condition):
        alpha_t, sigma_t = (expand(c, x_t) for c in self.schedule(t))
        variance = (2 * self.log_std).exp()
        mean = self.mean[condition["label"]]
        gain = alpha_t * variance / (alpha_t**2 * variance + sigma_t**2)
        return mean + (gain + self.gain) * (x_t - alpha_t * mean)


class Frozen(Objective):
    """Penalizes the difference of neighbouring frames."""

    name = "frozen"

    def losses(self, models, rollout, generator):
        x = rollout.x_s
        return {self.name: (x[:, :, 1:] - x[:, :, :-1]).square().mean()}


class Vivid(Objective):
    """Rewards the size of latents."""

    name = "vivid"

    def losses(self, models, rollout, generator):
        return {self.name: -rollout.x_s.square().mean()}


FAILURES = {
    "oversaturation": {"generator_objective": DistributionMatching() + Vivid()},
    "collapse": {"lr": 0.5, "fake_lr": 0.002, "fake_updates": 1},
    "static video": {"generator_objective": 100 * Frozen()},
    "diverging fake score": {"fake_lr": 0.5, "fake_updates": 1},
    "inaccurate fake score": {
        "generator_objective": DistributionMatching() + Vivid(),
        "fake_lr": 1e-4,
        "fake_updates": 1,
    },
}


def failing_run(folder, name="", *, updates=60, every: int = 6, samples=48):
    """Trains a run that fails, or one that does not, in a new run folder."""
    change = dict(FAILURES.get(name, {}))
    lr, fake_lr = change.pop("lr", 0.02), change.pop("fake_lr", 0.04)
    fake_updates = change.pop("fake_updates", 3)
    monitors = [HealthProbe(every, samples=samples, steps=8)] if every else []
    student = distill(
        Gaussians(),
        PhasePlan.uniform(1),
        updates=updates,
        experts=ExpertTraining(optimizer=AdamRecipe(lr=lr), ema=0.9),
        fake_scores=FakeScoreTraining(
            updates=fake_updates,
            optimizer=AdamRecipe(lr=fake_lr, decay=Constant()),
        ),
        rollouts=Rollouts(batch_size=16),
        session=Session(recorder=RunRecorder(folder, progress=False), monitors=monitors),
        **change,
    )
    (folder / "config.toml").write_text(f"[train]\nlr = {lr}\nfake_lr = {fake_lr}\n")
    return student
