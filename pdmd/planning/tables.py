"""The tables of a plan, for reading."""

from __future__ import annotations

from collections.abc import Sequence

from pdmd.planning.run_plan import RunPlan
from pdmd.planning.search import Choice

__all__ = ["amount", "size", "tables"]

_ITEMS = {
    "teacher": "teacher, parameters",
    "frozen": "frozen experts, parameters",
    "generator": "generator, parameters",
    "average": "generator, average of weights",
    "fake": "fake score, parameters",
    "generator_optimizer": "generator, optimizer states",
    "fake_optimizer": "fake score, optimizer states",
    "generator_gradients": "generator, gradients",
    "fake_gradients": "fake score, gradients",
    "activations": "activations",
    "in_flight": "gathered and reduced in flight",
    "data": "latents and conditions",
}


def size(value: float) -> str:
    """Writes bytes in the unit that suits them."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def amount(value: float) -> str:
    """Writes a number, such as of operations, in the unit that suits it."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E")).strip()


def tables(plan: RunPlan, *, show: int = 10) -> str:
    """Writes a plan's tables.

    Args:
        plan: The plan.
        show: Choices of degrees to list.
    """
    parts = [_head(plan), _cycles(plan), _choices(plan, show), _rank(plan)]
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
    if expert.under:
        where = f"over its {len(expert.under)} units"
    lines = [
        f"{plan.name}: teacher of {amount(roles.teacher.parameters)} parameters, experts of "
        f"{amount(expert.parameters)} {where}"
        + (f", sequence {expert.tokens}, {expert.heads} heads" if expert.heads else ""),
        f"{len(work.plan)} phases of {steps} steps, batch {work.batch_size}, "
        f"{work.fake_updates} fake updates, rollouts in an update: {work.accumulate}, "
        f"evaluations in a call of the teacher: {work.evaluations}",
        f"computed in {compute}, frozen networks held in {frozen}, units "
        f"activation checkpointing {'on' if work.activation_checkpointing else 'off'}",
    ]
    return "\n".join(lines)


def _cycles(plan: RunPlan) -> str:
    roles = ("teacher", "fake", "generator", "frozen")
    again = ("fake", "generator") if plan.work.activation_checkpointing else ()
    head = ["phase", *(f"{r} fwd" for r in roles), "fake bwd", "generator bwd"]
    head += [*(f"{r} again" for r in again), "FLOPs", "a GPU"]
    rows = []
    batch = plan.work.batch_size
    for k, (number, flops) in enumerate(zip(plan.calls, plan.flops, strict=True)):
        total = sum(flops.values())
        rows.append(
            [
                str(k + 1),
                *(f"{batch * number.forward[r]:,.0f}" for r in roles),
                *(f"{batch * number.backward[r]:,.0f}" for r in ("fake", "generator")),
                *(f"{batch * number.recomputed[r]:,.0f}" for r in again),
                amount(total),
                amount(total / plan.gpus),
            ]
        )
    return "network evaluations and operations in a cycle\n" + _table(head, rows)


def _choices(plan: RunPlan, show: int) -> str:
    head = ["replicate", "shard", "cp", "tp", "memory", "fits", "sent", "gather", "reduce"]
    head += ["tp sums", "cp swaps"]
    rows = []
    for choice in plan.choices[:show]:
        d, t = choice.degrees, choice.traffic
        rows.append(
            [
                *map(str, (d.dp_replicate, d.dp_shard, d.cp, d.tp)),
                size(choice.memory.total),
                "yes" if choice.fits else "no",
                *(
                    size(value) if value else "-"
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
    title = (
        f"{plan.gpus} GPUs of {size(plan.memory)}: of {len(plan.choices)} choices of degrees "
        f"{len(plan.fitting)} fit; bytes that a GPU holds, and sends in a cycle"
    )
    text = f"{title}\n{_table(head, rows)}"
    if not plan.fitting:
        text += f"\n{_nothing_fits(plan)}"
    return text


def _nothing_fits(plan: RunPlan) -> str:
    least = plan.least
    line = (
        f"nothing fits: the least that any choice needs is {size(least.memory.total)} "
        f"({_degrees(least)})"
    )
    if (
        not plan.work.activation_checkpointing
        and least.memory.activations > 0.3 * least.memory.total
    ):
        line += "; --parallel.activation-checkpointing full keeps fewer activations"
    return line


def _rank(plan: RunPlan) -> str:
    choice = plan.choices[0] if plan.fitting else plan.least
    memory = choice.memory
    rows = [[_ITEMS[name], size(value)] for name, value in memory.items.items() if value]
    rows.append(["all", size(memory.total)])
    title = (
        f"memory of a GPU at {_degrees(choice)}: highest in phase {choice.phase + 1}, "
        f"{memory.moment}"
    )
    return f"{title}\n{_table(['item', 'bytes'], rows)}"


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
