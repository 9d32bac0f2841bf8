"""A run plan, formatted as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdmd.planning.memory import Precision
from pdmd.planning.run_plan import RunPlan
from pdmd.planning.search import Choice

__all__ = ["format_count", "format_bytes", "format_plan"]

_ITEMS = {
    "teacher": "teacher, parameters",
    "frozen": "frozen experts, parameters",
    "generator": "generator, parameters",
    "average": "generator, EMA weights",
    "fake": "fake score, parameters",
    "generator_optimizer": "generator, optimizer states",
    "fake_optimizer": "fake score, optimizer states",
    "generator_gradients": "generator, gradients",
    "fake_gradients": "fake score, gradients",
    "activations": "activations",
    "in_flight": "gathered parameters, gradients in flight",
    "data": "latents and conditions",
}


def format_bytes(value: float) -> str:
    """Formats bytes with a binary unit."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_count(value: float) -> str:
    """Formats a count with a decimal unit."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E")).strip()


def format_plan(plan: RunPlan, *, show: int = 10) -> str:
    """Formats a plan as tables.

    Args:
        plan: The plan.
        show: Rows of the table of degrees.
    """
    parts = [_head(plan), _cycles(plan), _choices(plan, show), _rank(plan), _totals(plan)]
    return "\n\n".join(parts)


def _head(plan: RunPlan) -> str:
    work, roles = plan.work, plan.roles[0]
    expert = roles.generator
    names = {"float32": "fp32", "bfloat16": "bf16"}
    compute, frozen = (
        names[str(t).removeprefix("torch.")]
        for t in (plan.precision.compute, plan.precision.frozen)
    )
    steps = "+".join(str(phase.steps) for phase in work.plan)
    where = f"in {len(expert.units)} units"
    if expert.base_units:
        where = f"over {len(expert.base_units)} base units"
    lines = [
        f"{plan.name}: teacher of {format_count(roles.teacher.parameters)} parameters, experts of "
        f"{format_count(expert.parameters)} {where}"
        + (f", sequence {expert.tokens}, {expert.heads} heads" if expert.heads else ""),
        f"{len(work.plan)} phases of {steps} steps, batch {work.batch_size}, "
        f"{_numbers(work.fake_updates)} fake updates, accumulate {work.accumulate}"
        + (f" (fake {work.fake_accumulate}), " if work.fake_accumulate > 1 else ", ")
        + f"NFE per teacher call: {work.evaluations}",
        f"compute in {compute}{_own_types(plan.precision, names)}, frozen networks in {frozen}, "
        f"activation checkpointing {'on' if work.activation_checkpointing else 'off'}",
    ]
    if plan.sizes:
        sizes = ", ".join(f"{_tokens(one)} ({share:.0%})" for share, one in plan.sizes)
        lines.append(
            f"sizes of samples by their sequence: {sizes}; memory and cycles are those of the "
            "largest, FLOPs and hours of the run are means"
        )
    return "\n".join(lines)


def _own_types(precision: Precision, names: Mapping[str, str]) -> str:
    """Returns the types of roles that are not the teacher's, in brackets."""
    differing = [
        f"{noun} in {names[str(precision.of(role)).removeprefix('torch.')]}"
        for role, noun in (("generator", "experts"), ("fake", "fake scores"))
        if precision.of(role) != precision.compute
    ]
    if precision.average.itemsize < 4:
        differing.append(f"averages in {names[str(precision.average).removeprefix('torch.')]}")
    return f" ({', '.join(differing)})" if differing else ""


def _numbers(value: int | tuple[int, ...]) -> str:
    """Returns one number, or those of the phases where they differ."""
    numbers = (value,) if isinstance(value, int) else value
    return str(numbers[0]) if len(set(numbers)) == 1 else "+".join(map(str, numbers))


def _tokens(plan: RunPlan) -> str:
    return str(plan.roles[0].generator.tokens or plan.roles[0].teacher.tokens)


def _cycles(plan: RunPlan) -> str:
    roles = ("teacher", "fake", "generator", "frozen")
    recomputed = ("fake", "generator") if plan.work.activation_checkpointing else ()
    head = ["phase", *(f"{r} fwd" for r in roles), "fake bwd", "generator bwd"]
    head += [*(f"{r} recomputed" for r in recomputed), "FLOPs", "per GPU"]
    rows = []
    batch = plan.work.batch_size
    for k, (passes, flops) in enumerate(zip(plan.passes, plan.flops, strict=True)):
        total = sum(flops.values())
        rows.append(
            [
                str(k + 1),
                *(f"{batch * passes.forward[r]:,.0f}" for r in roles),
                *(f"{batch * passes.backward[r]:,.0f}" for r in ("fake", "generator")),
                *(f"{batch * passes.recomputed[r]:,.0f}" for r in recomputed),
                format_count(total),
                format_count(total / plan.cluster.gpus),
            ]
        )
    return "network evaluations and FLOPs per cycle\n" + _table(head, rows)


def _choices(plan: RunPlan, show: int) -> str:
    head = ["replicate", "shard", "cp", "tp", "memory", "fits", "seconds", "computing"]
    head += ["sharding", "splitting", "sent", "gather", "reduce", "tp all-reduce", "cp all-to-all"]
    rows = []
    for choice in plan.choices[:show]:
        d, t = choice.degrees, choice.traffic
        rows.append(
            [
                *map(str, (d.dp_replicate, d.dp_shard, d.cp, d.tp)),
                format_bytes(choice.memory.total),
                "yes" if choice.fits else "no",
                *(
                    f"{value:,.1f}"
                    for value in (
                        choice.slowest.total,
                        choice.slowest.computing,
                        choice.slowest.sharding,
                        choice.slowest.splitting,
                    )
                ),
                *(
                    format_bytes(value) if value else "-"
                    for value in (
                        t.total,
                        t.all_gather,
                        t.reduce_scatter + t.all_reduce,
                        t.tp_all_reduce,
                        t.cp_all_to_all,
                    )
                ),
            ]
        )
    cluster = plan.cluster
    title = (
        f"{cluster.gpus} GPUs of {cluster.memory:g} GiB: {len(plan.fitting)} of "
        f"{len(plan.choices)} choices of degrees fit; memory per GPU, seconds and bytes sent per "
        f"cycle\nat {format_count(cluster.flops)}FLOP/s a GPU, "
        f"{format_count(cluster.node_bandwidth)}B/s a GPU within a node of {cluster.node_gpus} "
        f"and {format_count(cluster.network_bandwidth)}B/s a node between nodes"
    )
    text = f"{title}\n{_table(head, rows)}"
    if not plan.fitting:
        text += f"\n{_nothing_fits(plan)}"
    return text


def _nothing_fits(plan: RunPlan) -> str:
    smallest = plan.smallest
    line = (
        f"nothing fits: the smallest memory of any choice is "
        f"{format_bytes(smallest.memory.total)} "
        f"({_degrees(smallest)})"
    )
    if (
        not plan.work.activation_checkpointing
        and smallest.memory.activations > 0.3 * smallest.memory.total
    ):
        line += "; --parallel.activation-checkpointing full saves activations"
    return line


def _rank(plan: RunPlan) -> str:
    choice = plan.best
    memory = choice.memory
    rows = [[_ITEMS[name], format_bytes(value)] for name, value in memory.items.items() if value]
    rows.append(["total", format_bytes(memory.total)])
    if memory.host:
        rows.append(["CPU memory of the rank", format_bytes(memory.host)])
        rows.append(["CPU memory of its node", format_bytes(choice.host)])
    title = (
        f"peak memory of a GPU at {_degrees(choice)}: phase {choice.phase + 1}, {memory.moment}"
    )
    return f"{title}\n{_table(['item', 'bytes'], rows)}"


def _totals(plan: RunPlan) -> str:
    totals = plan.totals()
    rows = [
        ["cycles", f"{totals.cycles:,}"],
        ["prompts drawn", f"{totals.prompts:,}"],
        ["FLOPs", format_count(totals.flops)],
        ["hours", f"{totals.seconds / 3600:,.1f}"],
        ["GPU hours", f"{totals.gpu_hours:,.0f}"],
        ["checkpoint", format_bytes(totals.checkpoint)],
        ["student", format_bytes(totals.student)],
        ["disk", format_bytes(totals.disk)],
    ]
    title = f"the run at {_degrees(plan.best)}, {plan.checkpoints} checkpoints kept"
    return f"{title}\n{_table(['total', ''], rows)}"


def _degrees(choice: Choice) -> str:
    d = choice.degrees
    return f"replicate {d.dp_replicate}, shard {d.dp_shard}, cp {d.cp}, tp {d.tp}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def write(line: Sequence[str]) -> str:
        words = [
            word.ljust(width) if i == 0 else word.rjust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        return ("  " + "  ".join(words)).rstrip()

    return "\n".join(map(write, lines))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    i = 0
    while abs(value) >= base and i + 1 < len(units):
        value /= base
        i += 1
    digits = 0 if i == 0 or value >= 100 else 1
    return f"{value:.{digits}f} {units[i]}"
