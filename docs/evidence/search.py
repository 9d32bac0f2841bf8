"""Reruns the trials of the searches that the notes of the evidence page describe.

python docs/evidence/search.py                 # list the trials
python docs/evidence/search.py ratio cuts_b    # run some: klh, sw2 and forwards, over seeds
python docs/evidence/search.py boundaries      # the error of the uniform plan at each boundary
python docs/evidence/search.py digits/high_cuts  # one trial on the digits: fidT and forwards
"""

import copy
import statistics
import sys
from pathlib import Path

import torch

from pdmd import PhasePlan, trajectory
from pdmd.benchmarks import BenchConfig, Scheme
from pdmd.benchmarks.distillation import DigitsBenchmark, MixtureBenchmark
from pdmd.benchmarks.efficiency import EfficiencySetting
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.initializers import Initializer, PerStep
from pdmd.evaluation.metrics import sliced_wasserstein
from pdmd.objectives import (
    DistributionMatching,
    ExactKL,
    LogSnrTimes,
    PosteriorDifference,
    RatioWeighting,
    SubintervalScoreMatching,
    TrajectoryRegression,
)
from pdmd.training.fake_scores import AdaptiveUpdates, FixedUpdates, OneFakeScorePerExitStep
from pdmd.training.phase_inputs import PhaseInputBuffer

FOLDER = Path("runs/search")


class Correction(Denoiser):
    """A fake score initialised at the exact teacher: the teacher plus a trained correction."""

    def __init__(self, teacher, network, zeroed):
        super().__init__(
            schedule=network.schedule, kind=network.kind, latent_shape=network.latent_shape
        )
        self.network_, self.zeroed = network, zeroed
        frozen = copy.deepcopy(network).requires_grad_(False).eval()
        object.__setattr__(
            self, "frozen", (teacher, frozen)
        )  # hidden from the trainable parameters
        if zeroed:
            for parameter in network.layers[-1].parameters():
                torch.nn.init.zeros_(parameter)
        self.evaluations = 1 + teacher.evaluations + (0 if zeroed else 1)

    def network(self, x_t, t, condition):
        teacher, start = self.frozen
        with torch.no_grad():
            base = teacher(x_t, t, condition).to(self.kind)
            if not self.zeroed:
                base = base - start.network(x_t, t, condition)
        return base + self.network_.network(x_t, t, condition)


class CorrectedFake(Initializer):
    def __init__(self, inner, zeroed=False):
        self.inner, self.zeroed = inner, zeroed

    def expert(self, teacher, phase, finished):
        return self.inner.expert(teacher, phase, finished)

    def fake(self, teacher, phase):
        return Correction(teacher, self.inner.fake(teacher, phase), self.zeroed)


def matching(*args, **kwargs):
    """Returns distribution matching with these arguments, as a change of a trial."""
    return {"generator_objective": lambda: DistributionMatching(*args, **kwargs)}


def ratio():
    return SubintervalScoreMatching(RatioWeighting())


def cuts(*times):
    return lambda: PhasePlan.from_timesteps([1, *times, 0])


def halves():
    return PhasePlan.uniform(2, steps=2)


def trial(**changes):
    """Returns the phased scheme with changes."""
    return Scheme(summary="", **changes)


def regressed(weight):
    return lambda: DistributionMatching() + weight * TrajectoryRegression(steps=8)


def fixed(number):
    """Returns a setting with a fixed number of fake updates."""
    return EfficiencySetting(summary="", fake_updates=lambda most: FixedUpdates(number))


def fast_fake(number=1, *, factor, update_factor=1.27, uses=4, per_rollout=1):
    """Returns a trial of a number of fake updates at `factor` times their rate, with a buffer."""
    efficiency = EfficiencySetting(
        summary="",
        phase_inputs=lambda rollouts: PhaseInputBuffer(-(-rollouts // uses), uses=uses),
        fake_updates_per_rollout=per_rollout,
        fake_updates=lambda most: FixedUpdates(number),
    )
    return trial(
        efficiency=efficiency,
        update_factor=update_factor,
        fake_rate_factor=lambda most: factor,
    )


def adaptive(factor, *args, per_rollout=1, **kwargs):
    """Returns a trial with adaptive fake updates and `factor` times the generator updates."""
    setting = EfficiencySetting(
        summary="",
        fake_updates=lambda most: AdaptiveUpdates(*args, **kwargs),
        fake_updates_per_rollout=per_rollout,
    )
    return trial(efficiency=setting, update_factor=factor)


FAST, MIXED = (2e-3, 2e-3), (2e-3, 1e-3)
FOUR = dict(learning_rates=FAST, **matching(timestep_samples=4))
B = dict(plan=cuts(0.55, 0.35, 0.18), update_shares=(1, 1, 2, 2))

TRIALS = {
    "ratio": trial(fake_objective=ratio),
    "log_snr": trial(
        **matching(times=LogSnrTimes()),
        fake_objective=lambda: SubintervalScoreMatching(times=LogSnrTimes()),
    ),
    "exact_kl": trial(**matching(ExactKL())),
    "posterior": trial(**matching(PosteriorDifference())),
    "regression_1": trial(generator_objective=regressed(1.0)),
    "regression_.2": trial(generator_objective=regressed(0.2)),
    "shift_1.5": trial(plan=lambda: PhasePlan.uniform(4, shift=1.5)),
    "shift_.7": trial(plan=lambda: PhasePlan.uniform(4, shift=0.7)),
    "rates_1e-3": trial(learning_rates=(1e-3, 2e-3)),
    "rates_2e-3": trial(learning_rates=FAST),
    "rates_3e-3": trial(learning_rates=(3e-3, 3e-3)),
    "timestep_samples": trial(**FOUR),
    "correction": trial(init=CorrectedFake),
    "correction_1e-3": trial(init=CorrectedFake, learning_rates=(1e-3, 2e-3)),
    "correction_zeroed": trial(init=lambda i: CorrectedFake(i, True), learning_rates=(1e-3, 2e-3)),
    "2x2": trial(**FOUR, plan=halves),
    "2x2_per_step": trial(**FOUR, plan=halves, init=PerStep),
    "2x2_per_exit_step": trial(
        **FOUR, plan=halves, init=PerStep, fake_scores=OneFakeScorePerExitStep()
    ),
    "cuts_a": trial(**FOUR, plan=cuts(0.6, 0.4, 0.2), update_shares=(1, 1, 2, 2)),
    "cuts_b": trial(**FOUR, **B),
    "cuts_c": trial(**FOUR, plan=cuts(0.6, 0.45, 0.3), update_shares=(1, 1, 2, 2)),
    "cuts_d": trial(**FOUR, plan=cuts(0.5, 0.35, 0.2)),
    "b_log_snr": trial(
        learning_rates=FAST, **B, **matching(timestep_samples=4, times=LogSnrTimes())
    ),
    "b_posterior": trial(
        learning_rates=FAST, **B, **matching(PosteriorDifference(), timestep_samples=4)
    ),
    "b_fake_10": trial(**FOUR, **B, efficiency=fixed(10)),
    "b_fake_rate": trial(learning_rates=MIXED, **B, **matching(timestep_samples=4)),
    "b_ratio": trial(
        learning_rates=FAST, **B, **matching(timestep_samples=8), fake_objective=ratio
    ),
    "b_1331": trial(
        learning_rates=MIXED,
        plan=B["plan"],
        update_shares=(1, 3, 3, 1),
        **matching(timestep_samples=4),
    ),
    "b_1221": trial(
        learning_rates=(2e-3, 5e-4),
        plan=B["plan"],
        update_shares=(1, 2, 2, 1),
        **matching(timestep_samples=4),
    ),
    "b_4_rollouts": trial(learning_rates=MIXED, **B, accumulate=4),
    "b_4_rollouts_4e-3": trial(learning_rates=(4e-3, 1e-3), **B, accumulate=4),
    "b_4_rollouts_1331": trial(
        learning_rates=(3e-3, 1e-3),
        plan=B["plan"],
        update_shares=(1, 3, 3, 1),
        accumulate=4,
        **matching(timestep_samples=2),
    ),
    "b_8_rollouts": trial(
        learning_rates=MIXED, plan=B["plan"], update_shares=(1, 1, 2, 3), accumulate=8
    ),
    "a_8_rollouts_3e-3": trial(
        learning_rates=(3e-3, 1e-3),
        plan=cuts(0.6, 0.4, 0.2),
        update_shares=(1, 1, 2, 3),
        accumulate=8,
    ),
    "b_8_rollouts_4e-3": trial(
        learning_rates=(4e-3, 1e-3),
        **B,
        accumulate=8,
        **matching(timestep_samples=2),
        efficiency=fixed(8),
    ),
    **{f"fast_fake_{k}": fast_fake(factor=k) for k in (1, 2, 3, 5)},
    "fast_fake_3_equal": fast_fake(factor=3, update_factor=1.0),
    "fast_fake_2_of_2": fast_fake(2, factor=2, update_factor=0.88),
    "fast_fake_3_of_5": fast_fake(5, factor=3, update_factor=1.0, uses=1),
    "fast_fake_3_buffer": fast_fake(factor=3, update_factor=1.2, uses=1),
    "fast_fake_3_reuse": fast_fake(factor=3, update_factor=1.43, per_rollout=2),
    "adaptive_.05": adaptive(1.0, 0.05),
    "adaptive_.08": adaptive(1.2, 0.08),
    "adaptive_.10": adaptive(1.2, 0.1, decay=0.98),
    "adaptive_.12": adaptive(1.3, 0.12),
    "adaptive_.13": adaptive(1.25, 0.13),
    "adaptive_.15": adaptive(1.2, 0.15),
    "adaptive_.20": adaptive(1.15, 0.2, most=8),
    "adaptive_.25": adaptive(1.36, 0.25),
    "adaptive_.30": adaptive(1.38, 0.3, decay=0.8),
    "adaptive_.05_reuse": adaptive(1.0, 0.05, per_rollout=5),
    "adaptive_.06_reuse": adaptive(1.15, 0.06, per_rollout=5),
    "adaptive_.08_reuse": adaptive(1.3, 0.08, per_rollout=5),
    "one_to_one_1.4": trial(efficiency=fixed(1), update_factor=1.4),
}
TOP = dict(plan=cuts(0.97, 0.92, 0.85), update_shares=(1, 1, 1, 7))
# changes to phased; `start` has the benchmark's own rates and fake updates
DIGITS = {
    "start": trial(),
    "timestep_samples": trial(**matching(timestep_samples=4)),
    "rollouts": trial(accumulate=4, learning_rates=(6e-4, 6e-4)),
    "fake_5": trial(efficiency=fixed(5)),
    "2x2": trial(plan=halves),
    "low_cuts": trial(plan=cuts(0.55, 0.35, 0.18), update_shares=(1, 1, 2, 2)),
    "high_cuts": trial(plan=cuts(0.9, 0.75, 0.5), update_shares=(1, 1, 2, 4)),
    "higher_cuts": trial(plan=cuts(0.95, 0.85, 0.7), update_shares=(1, 1, 1, 5)),
    "highest_cuts": trial(**TOP),
    "highest_cuts_timestep_samples": trial(**TOP, **matching(timestep_samples=4)),
    "highest_cuts_rollouts": trial(**TOP, accumulate=4, learning_rates=(6e-4, 6e-4)),
    "highest_cuts_fake_4": trial(**TOP, efficiency=fixed(4)),
    "highest_cuts_fake_8": trial(**TOP, efficiency=fixed(8)),
    "one_step_fake_4": trial(plan=lambda: PhasePlan.uniform(1), efficiency=fixed(4)),
    "extreme_cuts": trial(plan=cuts(0.97, 0.94, 0.9), update_shares=(1, 1, 1, 12)),
    "extreme_cuts_rollouts": trial(
        plan=cuts(0.97, 0.94, 0.9),
        update_shares=(1, 1, 1, 12),
        accumulate=4,
        learning_rates=(6e-4, 6e-4),
    ),
}


def run(name, benchmark, seeds):
    rows = []
    for seed in seeds:
        teacher = benchmark.teacher()
        condition = benchmark.condition(teacher)
        student, cost = benchmark.distill(TRIALS[name], teacher, seed)
        generator = torch.Generator().manual_seed(10_000 + seed)
        x = trajectory(student, condition, generator=generator)[-1]
        measure = benchmark.evaluator(teacher, condition, benchmark.measure_seed)
        rows.append({**measure(x), **cost})
    mean = {k: statistics.fmean(row[k] for row in rows) for k in ("klh", "sw2", "forwards")}
    print(f"{name:20s} klh {mean['klh']:.4f}  sw2 {mean['sw2']:.4f}  {mean['forwards']:,.0f}")


def boundaries(benchmark):
    """Compares the student with the exact diffused law at every boundary."""
    teacher = benchmark.teacher()
    student, _ = benchmark.distill(TRIALS["timestep_samples"], teacher, 0)
    condition = benchmark.condition(teacher)
    generator = torch.Generator().manual_seed(1)
    samples = trajectory(student, condition, generator=generator)

    def exact(s):
        x = teacher.sample(len(samples[0]), condition, generator=generator)
        return renoise_step(x, 0.0, s, teacher.schedule, generator) if s else x

    for phase, x in zip(student.plan, samples[1:], strict=True):
        law, other = exact(phase.t_end), exact(phase.t_end)
        error, floor = sliced_wasserstein(x, law), sliced_wasserstein(other, law)
        print(f"t = {phase.t_end:.2f}  sw2 {error:.4f}  floor {floor:.4f}")
    last = student.experts[-1](exact(student.plan[-1].t_start), condition)
    print(f"the last expert on exact phase inputs: sw2 {sliced_wasserstein(last, exact(0)):.4f}")


def digits(name, seed=0):
    benchmark = DigitsBenchmark(BenchConfig(name="digits"), FOLDER / "digits")
    benchmark.prepare(False)
    teacher = benchmark.teacher()
    condition = benchmark.condition(teacher)
    student, cost = benchmark.distill(DIGITS[name], teacher, seed)
    x = trajectory(student, condition, generator=torch.Generator().manual_seed(10_000 + seed))[-1]
    values = benchmark.evaluator(teacher, condition, benchmark.measure_seed)(x)
    print(f"{name:22s} fidT {values['feature_distance']:.4f}  {cost['forwards']:,}")


def seeds_of(name):
    if name.startswith("fast_fake"):
        eight = {f"fast_fake_{k}" for k in ("1", "2", "3", "2_of_2")}
        return range(100, 108 if name in eight else 106)
    return range(3 if name.startswith(("adaptive", "one_to_one")) else 2)


def main(names):
    torch.set_num_threads(1)
    if not names:
        print(*TRIALS, *(f"digits/{name}" for name in DIGITS), sep="\n")
    for name in names:
        if name.startswith("digits/"):
            digits(name.removeprefix("digits/"))
    benchmark = MixtureBenchmark(BenchConfig(name="mixture"), FOLDER)
    for name in names:
        if name == "boundaries":
            boundaries(benchmark)
        elif not name.startswith("digits/"):
            run(name, benchmark, seeds_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
