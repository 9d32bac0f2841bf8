"""Random settings of chaos runs: objectives, buffers, roles, teachers and checkpoint modes."""

import torch
from torch import nn

from pdmd import MlpDenoiser, RectifiedFlow, Teacher, teachers
from pdmd.teachers.mixture import encode_labels

__all__ = ["BASE", "random_settings"]

BASE = [
    "--train.batch-size=8",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=2",
    "--teacher.no-check-score",
    "--no-progress",
]
OBJECTIVES = [
    [],
    ["--objective.weight=exact_kl"],
    ["--objective.times=log_snr", "--objective.timestep-samples=2"],
    [
        "--objective.generator=['distribution_matching', {name='adversarial', weight=0.1}]",
        "--objective.fake=['score_matching', {name='discriminator', real_samples={name='teacher',"
        " pool=64}, penalty="
        "'finite_difference_r1'}]",
        "--objective.critic={name='mlp', width=32}",
    ],
]
FAKES = [
    ["--train.fake-updates=1"],
    ["--train.fake-updates=4", "--train.fake-error-tolerance=0.35"],
    ["--train.fake-updates=2", "--train.fake-updates-per-rollout=2"],
    ["--train.fake-updates=2", "--train.fake-scores=per_exit_step"],
]
BUFFERS = [
    [],
    ["--train.phase-inputs=buffer", "--train.buffer-uses=2", "--train.buffer-batches=7"],
    ["--train.phase-inputs=buffer", "--train.buffer-uses=3", "--train.buffer-chunk=3"],
]
EXPERTS = [[], ["--train.expert=renoising"], ["--train.initializer=per_step"], ["--train.ema=0"]]
CURRICULA = [[], [], ["--train.curriculum=joint"], ["--train.curriculum=shared"]]
MODES = [[], ["--train.checkpoint-async"], ["--train.checkpoint-keep=1"]]
ADAPTERS = [
    ["--lora.rank=4"],
    ["--lora.rank=4", "--lora.fake-rank=2"],
    ["--lora.rank=2", "--train.initializer=previous"],
]
MIXTURE = [
    "--network.arguments.width=128",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
]
WEIGHTS = ["--teacher.name=chaos", "--teacher.arguments", "dropout"]


@teachers.register("chaos")
class ChaosTeacher(Teacher):
    """A small network with dropout, which draws from torch's global generators.

    Args:
        dropout: The probability that a hidden unit is dropped in training.
    """

    def __init__(self, dropout=0.0):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(2,))
        self.mlp = MlpDenoiser.rectified_flow(dim=2, classes=2, width=64, depth=2)
        self.dropout = nn.Dropout(float(dropout))
        generator = torch.Generator().manual_seed(3)
        for weight in self.mlp.parameters():
            weight.data.normal_(0, 0.1, generator=generator)

    @property
    def prompts(self):
        return [0, 1]

    def encode(self, prompts):
        return encode_labels(prompts, 2)

    def network(self, x_t, t, condition):
        return self.mlp.network(self.dropout(x_t), t, condition)


def random_settings(rng, *, adapters, ranks=1):
    """Returns the options of a random run.

    Args:
        rng: A ``random.Random``.
        adapters: Whether experts are adapters over the teacher's weights.
        ranks: Number of ranks; on several an update takes longer, so there are fewer.
    """
    words = [f"--plan.phases={rng.randint(1, 3)}", "--plan.steps", str(rng.randint(2, 3))]
    updates = rng.randint(60, 160) if ranks == 1 else rng.randint(15, 40)
    words += [f"--train.updates={updates}", f"--train.seed={rng.randint(0, 99)}"]
    words += [f"--train.checkpoint-every={rng.randint(1, 5)}"]
    words += [f"--train.accumulate={rng.choice([1, 1, 2])}"]
    for choices in (OBJECTIVES, FAKES, BUFFERS, MODES):
        words += rng.choice(choices)
    if adapters:
        words += [*rng.choice(ADAPTERS), *rng.choice([[], ["--train.ema=0"]])]
    else:
        words += [*rng.choice(EXPERTS), *rng.choice(CURRICULA)]
    teacher = [*WEIGHTS, rng.choice(["0.0", "0.2"])]
    return [*words, *BASE, *(teacher if adapters or rng.random() < 0.4 else MIXTURE)]
