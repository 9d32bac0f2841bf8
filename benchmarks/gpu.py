"""Measures a full-size cycle on an accelerator: seconds and operations by role, and memory.

    python benchmarks/gpu.py qwen_image wan_a14b --out docs/evidence/gpu.json

Qwen-Image (20 B, 1024 x 1024) and Wan 2.2 A14B (480p, as many frames as fit), of random weights,
guided, each with its three roles as adapters over one network, and where they fit as adapters over
copies of their own. What is timed is a cycle of the last phase: the frozen expert's rollouts, the
fake updates and the expert's update, in bfloat16, with blocks computed again.

Operations are those that ``pdmd plan`` counts; utilisation is of the card's nominal rate, where
it is known, else of the fastest matrix product measured. The roofline is the longer of computing a
role's operations at that rate and of reading its weights once for every pass.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from pdmd import (
    AdamRecipe,
    DistributionMatching,
    LowRank,
    LowRankRoles,
    PhasePlan,
    StochasticTruncation,
    SubintervalScoreMatching,
)
from pdmd.benchmarks.memory import allocated
from pdmd.distillation.experts import OdeExpert
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives.base import Objective
from pdmd.planning import Degrees, Precision, Work, measure_roles, memory_of
from pdmd.planning.traffic import flops_of
from pdmd.teachers import QwenImageTeacher, WanTeacher
from pdmd.teachers.guided import Guided
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.accounting import ROLES
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

NOMINAL = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}  # dense bfloat16
FRAMES = (81, 61, 49, 33, 17, 5)
GIB = 2**30
TINY = {"height": 32, "width": 32, "num_layers": 2, "num_attention_heads": 2}
TINY |= {"attention_head_dim": 32, "text_length": 8}
TINY_OF = {
    "qwen_image": {**TINY, "joint_attention_dim": 64},
    "wan_a14b": {**TINY, "ffn_dim": 64, "text_dim": 64},
}


class Copies(LowRankRoles):
    """The same adapters, each role's over a copy of the network of its own."""

    def expert(self, teacher, phase, finished):
        return super().expert(copy.deepcopy(teacher), phase, [])

    def fake(self, teacher, phase):
        return super().fake(copy.deepcopy(teacher), phase)


ADAPTER = LowRank(rank=64, alpha=8.0)
ROLES_OF = {
    "one base": LowRankRoles(ADAPTER, ADAPTER),
    "copies": Copies(ADAPTER, ADAPTER),
}


def make_teacher(model, frames, tiny, **where):
    sizes = TINY_OF[model] if tiny else {}
    if model == "qwen_image":
        return QwenImageTeacher.from_config(**sizes, dtype="bfloat16", **where)
    return WanTeacher.from_config(**sizes, frames=frames, dtype="bfloat16", **where)


def plan_of(model):
    if model == "qwen_image":
        return PhasePlan.uniform(2, steps=2, shift=3.0)
    return PhasePlan.from_timesteps((1.0, 0.9375, 0.875, 0.5, 0.0), steps=2)


class Marked(Objective):
    """Another objective, which tells a clock when its losses are there."""

    def __init__(self, inner, clock):
        self.inner, self.clock = inner, clock

    def losses(self, models, rollout, generator):
        losses = self.inner.losses(models, rollout, generator)
        self.clock.mark("losses")
        return losses


class Clock:
    """Marks moments on the device's own time line, and sums what lies between them by role."""

    def __init__(self, device):
        self.device, self.marks = device, []

    def mark(self, name):
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.append((name, event))

    def watch(self, role, denoiser):
        denoiser.register_forward_pre_hook(lambda *_: self.mark(f"{role} begins"))
        denoiser.register_forward_hook(lambda *_: self.mark(f"{role} forward"))

    def seconds(self):
        """Returns seconds by role and way since the first mark, and all of them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

        def between(a, b):
            return a.elapsed_time(b) / 1e3 if self.device.type == "cuda" else b - a

        out, opened = {}, {}
        for name, event in self.marks:
            role, _, way = name.partition(" ")
            if way == "begins" or name == "losses":
                opened[role] = event
            elif way == "forward":
                out[name] = out.get(name, 0.0) + between(opened.pop(role), event)
            elif way == "backward":
                out[name] = out.get(name, 0.0) + between(opened.pop("losses"), event)
        out["all"] = between(self.marks[0][1], self.marks[-1][1])
        out["rest"] = out["all"] - sum(v for k, v in out.items() if k != "all")
        self.marks.clear()
        return out


class Seldom(Recorder):
    """Never settles the steps within a measurement."""

    interval = 10**6


def make_trainer(teacher, init, work, device, clock):
    """Makes the trainer of the plan's last phase, whose roles a clock watches."""
    runtime = OneProcess(device, torch.bfloat16, activation_checkpointing=True)
    teacher = teacher.eval().requires_grad_(False)
    *before, last = work.plan
    shared = ROLES_OF["one base"]  # three roles have copies, and not what came before
    earlier = [OdeExpert(shared.expert(teacher, phase, []), phase) for phase in before]
    for expert in earlier:
        runtime.placement.frozen(expert.denoiser).requires_grad_(False).eval()
    guided = runtime.placement.frozen(Guided(teacher, 4.0))
    conditions = teacher.encode(list(teacher.prompts))
    trainer = PhaseTrainer(
        experts=[OdeExpert(init.expert(teacher, last, earlier), last)],
        earlier=earlier,
        teacher=guided,
        fakes=[[init.fake(teacher, last)]],
        generator_objective=Marked(DistributionMatching(), clock),
        fake_objective=Marked(SubintervalScoreMatching(), clock),
        conditions=ConditionStream(conditions.to(device)),
        updates=10**6,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(optimizer=AdamRecipe(lr=1e-5), max_grad_norm=1.0),
        rollouts=Rollouts(
            batch_size=work.batch_size,
            truncation=work.truncation,
            phase_inputs=work.phase_inputs,
        ),
        fake_training=FakeScoreTraining(
            updates=work.fake_updates,
            updates_per_rollout=work.fake_updates_per_rollout,
            optimizer=AdamRecipe(lr=1e-5),
            max_grad_norm=1.0,
        ),
        session=Session(runtime=runtime, recorder=Seldom(), max_consecutive_skips=0),
    )
    clock.watch("teacher", trainer.teacher)
    clock.watch("generator", trainer.experts[0].denoiser)
    clock.watch("fake", trainer.fakes[0][0])
    for expert in earlier:
        clock.watch("frozen", expert.denoiser)
    clip = runtime.optimization.clip_gradients

    def clipped(network, max_grad_norm):
        role = next(r for r, own in trainer.networks.items() if own is network)
        clock.mark(f"{role} backward")
        return clip(network, max_grad_norm)

    runtime.optimization.clip_gradients = clipped
    return trainer


def measure_cycle(model, kind, frames, options):
    """Measures one model with one kind of roles; raises where it does not fit."""
    device, init = torch.device(options.device), ROLES_OF[kind]
    plan = plan_of(model)
    work = Work(
        plan=plan,
        truncation=StochasticTruncation(),
        batch_size=options.batch,
        fake_updates=options.fake_updates,
        evaluations=2,
        fake_updates_per_rollout=options.fake_updates_per_rollout,
        phase_inputs=PhaseInputBuffer(64) if options.ring else FreshPhaseInputs(),
        updates=1 + options.cycles,
        activation_checkpointing=True,
    )
    precision = Precision(compute=torch.bfloat16, frozen=torch.bfloat16)
    outline = make_teacher(model, frames, options.tiny, meta=True)
    condition = outline.encode(list(outline.prompts)[:1])
    roles = measure_roles(outline, ROLES_OF["one base"], condition, work, precision=precision)
    last = len(plan) - 1
    parameters = sum(p.numel() for p in outline.parameters())
    del outline
    clock, made = Clock(device), []

    def first():
        teacher = make_teacher(model, frames, options.tiny, device=device)
        made.append(make_trainer(teacher, init, work, device, clock))
        made[0].cycle()

    peak = allocated(first, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer, seconds = made[0], []
    before = dict(trainer.session.account.equivalents)
    clock.marks.clear()
    for i in range(options.cycles):
        clock.mark("cycle")
        trainer.cycle()
        clock.mark("end")
        seconds.append(clock.seconds())
        told = f"{model}, {kind}: cycle {i + 1} of {options.cycles}, {seconds[-1]['all']:.2f} s"
        print(told, file=sys.stderr, flush=True)
    if device.type == "cuda":
        peak = max(peak, torch.cuda.max_memory_allocated(device))
    trainer.settle()
    counted = trainer.session.account.equivalents
    samples = options.cycles * options.batch
    useful = flops_of(roles[last], dataclasses.replace(work, activation_checkpointing=False), last)
    all_flops = flops_of(roles[last], work, last)
    names = sorted({name for one in seconds for name in one})
    return {
        "model": model,
        "roles": kind,
        "parameters": parameters,
        "frames": frames,
        "tokens": roles[last].teacher.tokens,
        "batch": options.batch,
        "fake_updates": options.fake_updates,
        "reuse": options.fake_updates_per_rollout,
        "buffer": options.ring,
        "phase": last + 1,
        "cycles": options.cycles,
        "equivalents": {r: (counted[r] - before[r]) / samples for r in ROLES},
        "seconds": {n: statistics.fmean(one.get(n, 0.0) for one in seconds) for n in names},
        "seconds_low": min(one["all"] for one in seconds),
        "seconds_high": max(one["all"] for one in seconds),
        "flops": useful,
        "flops_recomputed": {r: all_flops[r] - useful[r] for r in ROLES},
        "weight_bytes": 2 * roles[last].teacher.parameters,
        "peak_gib": peak / GIB,
        "planned_gib": memory_of(roles[last], work, Degrees(), precision).total / GIB,
    }


def against(row, card):
    """Sets a row against the card: utilisation, and the roofline by role."""
    rate = card["nominal_flops"] or card["matmul_flops"]
    seconds = row["seconds"]["all"]
    useful, again = sum(row["flops"].values()), sum(row["flops_recomputed"].values())
    roofline = {}
    for role in ROLES:
        computing = (row["flops"][role] + row["flops_recomputed"][role]) / rate
        passes = row["equivalents"][role]  # a pass reads the weights once, whatever its rows
        reading = passes * row["weight_bytes"] / card["bytes_per_second"]
        roofline[role] = max(computing, reading)
    return {
        **row,
        "model_flops_utilisation": useful / seconds / rate,
        "hardware_flops_utilisation": (useful + again) / seconds / rate,
        "roofline_seconds": roofline,
        "of_roofline": sum(roofline.values()) / seconds,
    }


def card_of(device):
    """Measures a card's fastest matrix product and its memory's rate."""
    cuda = device.type == "cuda"
    size, times = (8192, 20) if cuda else (512, 3)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    long = torch.empty(2**30 if cuda else 2**24, device=device, dtype=torch.uint8)
    other = torch.empty_like(long)

    def fastest(run):
        best = float("inf")
        for _ in range(times):
            if cuda:
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
        return best

    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU"
    nominal = next((rate for key, rate in NOMINAL.items() if cuda and key in name), None)
    return {
        "name": name,
        "torch": torch.__version__,
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / GIB
        if cuda
        else None,
        "matmul_flops": 2 * size**3 / fastest(lambda: a @ a),
        "nominal_flops": nominal,
        "bytes_per_second": 2 * len(long) / fastest(lambda: other.copy_(long)),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=list(TINY_OF), metavar="MODEL")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--roles", nargs="+", choices=list(ROLES_OF), default=list(ROLES_OF))
    parser.add_argument("--cycles", type=int, default=3, help="cycles that are timed (3)")
    parser.add_argument("--batch", type=int, default=1, help="samples in a rollout (1)")
    parser.add_argument("--fake-updates", type=int, default=5, help="in a cycle (5)")
    parser.add_argument(
        "--fake_updates_per_rollout", type=int, default=1, help="fake updates of a rollout (1)"
    )
    parser.add_argument("--ring", action="store_true", help="phase inputs from a ring")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="of videos, in turn")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of two blocks, for a trial")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA here; try --device cpu --tiny")
    for name in ("cycles", "batch", "fake_updates_per_rollout"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    out = {"machine": card_of(device), "rows": [], "left_out": {}}
    for model in options.models:
        for kind in options.roles:
            for frames in options.frames if model == "wan_a14b" else (1,):
                gc.collect()
                with contextlib.suppress(AttributeError, RuntimeError):
                    torch.cuda.empty_cache()
                name = f"{model}, {kind}, {frames} frames"
                try:
                    row = measure_cycle(model, kind, frames, options)
                except torch.OutOfMemoryError:
                    out["left_out"][name] = "does not fit"
                    print(f"{name}: does not fit", file=sys.stderr, flush=True)
                    continue
                out["rows"].append(against(row, out["machine"]))
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(out, indent=2) + "\n")
                break
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(out, indent=2) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
