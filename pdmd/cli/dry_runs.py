"""Dry runs: what a run would do, after everything was built and checked."""

from __future__ import annotations

from pdmd.cli.runs import Run
from pdmd.distillation.notices import objective_notice, plan_notice, prompt_notice

__all__ = ["describe_run"]


def describe_run(run: Run) -> str:
    """Describes a run that was built: its teacher, plan, objectives, and what it looks at.

    Args:
        run: The run.
    """
    config, train, teacher = run.config, run.config.train, run.teacher
    weights = sum(parameter.numel() for parameter in teacher.parameters())
    shape = " x ".join(map(str, teacher.latent_shape))
    ranks = run.runtime.ranks
    lines = [
        f"teacher    {config.teacher.name}: {weights:,} parameters, latents {shape}, guidance "
        f"{', '.join(f'{g:g}' for g in config.teacher.guidance)}",
        f"prompts    {len(teacher.prompts):,}",
        f"generator  {run.generator_objective!r}",
        f"fake score {run.fake_objective!r}",
        f"device     {run.runtime.device}, {ranks.data_ranks} data ranks of "
        f"{ranks.local_batch(train.batch_size)} samples",
        *([f"sizes      {run.buckets!r}"] if len(run.buckets) > 1 else []),
        f"plan       {len(run.plan)} phases, {run.plan.nfe} steps",
    ]
    for phase, updates in zip(run.plan, train.updates_of(run.plan), strict=True):
        times = ", ".join(f"{t:.4g}" for t in (*phase.timesteps, phase.t_end))
        low, high = phase.score_range
        lines.append(
            f"  phase {phase.number}  t {times}; scores in ({low:.4g}, {high:.4g}); {updates:,} "
            "updates"
        )
    watched = []
    if config.health.every:
        watched.append(f"health every {config.health.every} updates")
    if config.validation.every:
        watched.append(f"validation every {config.validation.every}")
    watched += config.tracking.trackers
    what = "resumes" if run.resume else "replaces what is in" if run.overwrite else "writes to"
    lines += [
        f"looks at   {', '.join(watched) or 'nothing'}",
        f"{what} {run.folder}; a dry run writes nothing",
    ]
    notices = (
        config.teacher.notice(),
        config.student.notice(run.generator_objective),
        prompt_notice(teacher, teacher.prompts),
        plan_notice(teacher, run.plan),
        objective_notice(run.fake_objective),
    )
    return "\n".join([*lines, *(f"notice     {notice}" for notice in notices if notice)])
