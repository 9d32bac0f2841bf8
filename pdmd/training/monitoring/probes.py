r"""Probes: measurements of the student so far beside the teacher's own samples.

A probe samples pairs of fixed noise for each of several prompts. The student maps them to
:math:`x_{t_k}`, the end of its phase; the teacher's samples :math:`y_{t_k}` come from the same
noise along its probability flow. Both are seen through the teacher's :math:`\hat x_0(x_{t_k})`,
so that noise that is left does not hide what is measured. With
:math:`M` the mean of all the teacher's values, :math:`v(x)` the mean of :math:`(x - M)^2` over the
values of a sample, and pairs :math:`x, x'` of one prompt with
:math:`u(x) = \mathbb E \|x - x'\|^2 / (2 \mathbb E \|x - M\|^2)`:

============== ======================================================================
``contrast``   :math:`(\mathbb E v(x) / \mathbb E v(y))^{1/2}`
``mean_drift`` :math:`(\mathbb E x - \mathbb E y) / (\mathbb E v(y))^{1/2}`
``similarity`` :math:`1 - u(x)`
``diversity``  :math:`u(x) / u(y)`
``motion``     mean absolute difference of neighbouring frames, over the teacher's
``fake_error`` root mean square over bins of time of the relative fake-score error
``fake_loss``  :math:`\mathbb E \|\varepsilon - \hat\varepsilon\|^2` over that of the teacher
============== ======================================================================

Ratios come with their relative standard errors, ``*_error``. The relative error of the fake score
is a mean over the cycles before the probe, which are added up on the device; its loss and the
teacher's are measured on the student's samples, at the same times and noise, and the geometric
mean is taken over times. The fake score starts as the teacher and learns the student, so that it
predicts the noise in its samples no worse than the teacher does; the loss itself depends on the
student's variance, and may well rise. Only a probe waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pdmd.diffusion.sampling import initial_noise
from pdmd.diffusion.solvers import diffuse, transition_noise
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.distillation.unfinished import flow, teacher_times
from pdmd.randomness import RankGenerator, randn_like
from pdmd.training.monitoring.detectors import Detector, HealthRecord, default_detectors
from pdmd.training.monitoring.monitors import Cycle, Monitor, undisturbed
from pdmd.typing import Condition, Latents

__all__ = ["HealthProbe", "compare", "moments"]

WINDOW = 16
"""Cycles before a probe over which the fake score's relative error is averaged."""
TIMES = 4
"""Times at which the losses of fake score and teacher are compared."""

Statistics = dict[str, Tensor]


class HealthProbe(Monitor):
    """Measures the health of a training at an interval, and names what goes wrong.

    Args:
        every: Updates between measurements.
        samples: Samples of student and teacher, over all ranks; at least two on each.
        steps: Steps of the teacher's samples.
        seed: Seed of the noise.
        detectors: What is looked for; everything by default.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        every: int = 50,
        *,
        samples: int = 64,
        steps: int = 25,
        seed: int = 0,
        detectors: Sequence[Detector] | None = None,
    ) -> None:
        for name, value in {"every": every, "samples": samples, "steps": steps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every, self.samples, self.steps, self.seed = every, samples, steps, seed
        self.detectors = tuple(default_detectors() if detectors is None else detectors)
        self._references: dict[float, tuple[Tensor, Statistics]] = {}
        self._errors: Tensor | None = None
        self._cycles = 0
        self._resumed = False

    def on_update(self, cycle: Cycle) -> None:
        left = -cycle.update % self.every
        if left < WINDOW:
            self._add_fake_error(cycle)
        if left:
            return
        if not self._resumed:  # detectors know what was recorded before
            self._resumed = True
            for earlier in cycle.recorder.health_records():
                for detector in self.detectors:
                    detector.observe(earlier)
        record = HealthRecord(
            phase=cycle.phase.number,
            update=cycle.update,
            updates=cycle.updates,
            values={f"health/{k}": v for k, v in self.measure(cycle).items()},
        )
        found = [finding for d in self.detectors if (finding := d.observe(record)) is not None]
        cycle.recorder.on_health(record, found)

    @torch.no_grad()
    def measure(self, cycle: Cycle) -> dict[str, float]:
        """Measures student and fake score; waits for the device."""
        experts = cycle.experts()
        end = experts[-1].phase.t_end
        times = teacher_times(cycle.teacher, self.steps)

        def of_teacher(x: Latents, condition: Condition, generator: torch.Generator) -> Latents:
            return flow(cycle.teacher, x, 1.0, end, condition, times=times)

        def of_student(x: Latents, condition: Condition, generator: torch.Generator) -> Latents:
            return _through(experts, x, condition, generator)

        with undisturbed(cycle.device):
            if end not in self._references:
                parts = [self._clean(cycle, x, end, c) for x, c in self._drawn(cycle, of_teacher)]
                centre = torch.stack([x.mean() for x in parts]).mean()
                centre = cycle.runtime.ranks.mean(centre)
                self._references[end] = centre, self._moments(cycle, parts, centre)
            centre, teacher = self._references[end]
            drawn = list(self._drawn(cycle, of_student))
            parts = [self._clean(cycle, x, end, c) for x, c in drawn]
            student = self._moments(cycle, parts, centre)
            values = compare(student, teacher, self._global_samples(cycle))
            values["fake_loss"] = self._fake_loss(cycle, experts[-1].phase, *drawn[0])
        error = self._fake_error(cycle)
        return values if error is None else values | {"fake_error": error}

    def _drawn(
        self,
        cycle: Cycle,
        sampler: Callable[[Latents, Condition, torch.Generator], Latents],
    ) -> Iterator[tuple[Latents, Condition]]:
        """Yields samples in batches as large as the training's, with their conditions."""
        ranks = cycle.runtime.ranks
        batch, number = self._batches(cycle)
        pairs = self._global_samples(cycle) // 2
        known = cycle.conditions.condition
        prompts = 0 if known is None else int(known.batch_size[0])
        for i in range(number):
            first = (i * ranks.data_ranks + ranks.data_rank) * batch
            condition = None
            if prompts:
                own = torch.arange(first, first + batch) // 2
                condition = cycle.conditions.take(own * prompts // pairs % prompts)
            seed = (self.seed * 1_000_003 + i) % 2**63
            generator = RankGenerator.make(seed, ranks.data_rank, ranks.data_ranks)
            noise = initial_noise(cycle.teacher, batch, generator)
            yield sampler(noise, condition, generator), condition

    @staticmethod
    def _clean(cycle: Cycle, x: Latents, end: float, condition: Condition) -> Latents:
        """Returns what latents at the end of a phase look like."""
        if end > 0:
            low, high = cycle.teacher.time_range
            x = cycle.teacher(x, min(max(end, low), high), condition).to("x0")
        return x.float()

    def _fake_loss(self, cycle: Cycle, phase: Phase, x_s: Latents, condition: Condition) -> float:
        """Returns the fake score's loss over the teacher's, on the student's samples."""
        ranks, (low, high) = cycle.runtime.ranks, phase.score_range
        generator = RankGenerator.make(self.seed, ranks.data_rank, ranks.data_ranks)
        losses = []
        for i in range(TIMES):
            t = low + (high - low) * (i + 0.5) / TIMES
            epsilon = randn_like(x_s, generator)
            x_t = diffuse(x_s, epsilon, phase.t_end, t, cycle.teacher.schedule)
            both = [
                (epsilon - transition_noise(score(x_t, t, condition), phase.t_end)).square().mean()
                for score in (cycle.fake, cycle.teacher)
            ]
            losses.append(torch.stack(both).double())
        fake, real = ranks.mean(torch.stack(losses)).clamp(min=1e-30).log().mean(0).tolist()
        return math.exp(min(fake - real, 700.0))

    def _batches(self, cycle: Cycle) -> tuple[int, int]:
        """Returns the samples of a batch on this rank, which are pairs, and the batches."""
        own = max(2, -(-self.samples // cycle.runtime.ranks.data_ranks))
        batch = max(2, min(cycle.batch, own) // 2 * 2)
        return batch, -(-own // batch)

    def _global_samples(self, cycle: Cycle) -> int:
        batch, number = self._batches(cycle)
        return batch * number * cycle.runtime.ranks.data_ranks

    def _moments(self, cycle: Cycle, latents: Sequence[Latents], centre: Tensor) -> Statistics:
        parts = [moments(x, centre) for x in latents]
        means = torch.stack([torch.stack([p[k] for p in parts]).mean() for k in parts[0]])
        means = cycle.runtime.ranks.mean(means)
        return dict(zip(parts[0], means, strict=True))

    def _add_fake_error(self, cycle: Cycle) -> None:
        error = cycle.measure().get("relative_error")
        if error is not None:
            error = error.detach().float()
            self._errors = error if self._errors is None else self._errors + error
            self._cycles += 1

    def _fake_error(self, cycle: Cycle) -> float | None:
        errors, self._errors = self._errors, None
        cycles, self._cycles = self._cycles, 0
        if errors is None:
            return None
        mean = cycle.runtime.ranks.mean(errors) / cycles
        return float(mean.square().mean().sqrt())


def _through(
    experts: Sequence[Expert], x: Latents, condition: Condition, generator: torch.Generator
) -> Latents:
    for expert in experts:
        x = expert(x, condition, generator=generator)
    return x


def moments(x: Latents, centre: Tensor) -> Statistics:
    """Returns the means over samples, and over pairs of neighbouring rows, of what is compared.

    Args:
        x: Samples, two of each prompt in neighbouring rows, with shape :math:`(B, *)`.
        centre: The mean of all the teacher's values, a scalar.

    Returns:
        Scalars on the device of ``x``: the means, and those of squares, under ``*_2``.
    """
    flat = (x - centre).flatten(1).double()
    power, mean = flat.square().mean(1), flat.mean(1)
    apart = (flat[::2] - flat[1::2]).square().mean(1)
    rows = {"power": power, "mean": mean, "apart": apart}
    if x.ndim == 5 and x.shape[2] > 1:
        rows["motion"] = (x[:, :, 1:] - x[:, :, :-1]).abs().flatten(1).double().mean(1)
    out: Statistics = {}
    for name, value in rows.items():
        out[name], out[f"{name}_2"] = value.mean(), value.square().mean()
    return out


def compare(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], samples: int
) -> dict[str, float]:
    """Compares the moments of student and teacher; waits for the device.

    Args:
        student: The moments of the student's samples, as from :func:`moments`.
        teacher: Those of the teacher's.
        samples: The number of samples of each.

    Returns:
        Ratios and their standard errors, by name.
    """
    names = list(student)
    both = torch.stack([torch.stack([m[k] for k in names]) for m in (student, teacher)]).tolist()
    x, y = (dict(zip(names, values, strict=True)) for values in both)
    tiny = 1e-30

    def variance(values: Mapping[str, float], name: str, number: int) -> float:
        return max(values[f"{name}_2"] - values[name] ** 2, 0.0) / max(number - 1, 1)

    def relative(name: str, number: int) -> float:
        parts = [variance(v, name, number) / max(v[name] ** 2, tiny) for v in (x, y)]
        return math.sqrt(sum(parts))

    def ratio(name: str) -> float:
        return x[name] / max(y[name], tiny)

    std, pairs = math.sqrt(max(y["power"], tiny)), samples // 2
    alike = {key: 1 - v["apart"] / max(2 * v["power"], tiny) for key, v in (("x", x), ("y", y))}
    out = {
        "contrast": math.sqrt(max(ratio("power"), 0.0)),
        "contrast_error": relative("power", samples) / 2,
        "mean_drift": (x["mean"] - y["mean"]) / std,
        "mean_drift_error": math.sqrt(variance(x, "mean", samples) + variance(y, "mean", samples))
        / std,
        "similarity": alike["x"],
        "teacher_similarity": alike["y"],
        "diversity": (1 - alike["x"]) / max(1 - alike["y"], tiny),
        "diversity_error": relative("apart", pairs),
    }
    if "motion" in x:
        out |= {"motion": ratio("motion"), "motion_error": relative("motion", samples)}
    return out
