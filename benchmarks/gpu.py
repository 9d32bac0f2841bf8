"""Measures full-size networks and cycles on one GPU, within a budget of seconds.

    python benchmarks/gpu.py --out docs/evidence/gpu.json --seconds 480

Qwen-Image (20 B, 1024 x 1024) first, then one network of Wan 2.2 A14B (480p, 33 frames), with
random weights, guidance, adapters of rank 64 over one base network, bfloat16 and activation
checkpointing. What the plan says does not fit the GPU is left out. Of each model the roles are
measured once: the guided teacher's forward pass, forward and backward pass of expert and fake
score, with and without a mask of the text, and both optimizers' steps. Then whole cycles of the
last phase follow: rollouts through the frozen expert, the fake updates and the expert's update.

The JSON is written after every measurement, so a run that is interrupted keeps its figures. No
measurement starts for which too few seconds of the budget are left.

FLOPs and memory are those of ``pdmd plan``, from networks of two and three blocks on the meta
device.
"""

import argparse
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
from pdmd.distillation.experts import OdeExpert
from pdmd.distributed.runtime import OneProcess
from pdmd.planning import Degrees, Precision, Workload, measure_roles, memory_of
from pdmd.planning.depth import deepen_roles
from pdmd.planning.traffic import flops_of
from pdmd.teachers import QwenImageTeacher, WanTeacher
from pdmd.teachers.guided import Guided
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer
from pdmd.typing import repeat_condition

NOMINAL = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}  # dense bfloat16
GIB = 2**30
COUNTED = 0.9  # of a GPU's memory; the rest is for what the plan does not count
FAKE_UPDATES = 5
REPEATS = 3
DEPTHS = (2, 3)
ADAPTER = LowRank(rank=64, alpha=8.0)
ROLES = LowRankRoles(ADAPTER, ADAPTER)
PRECISION = Precision(compute=torch.bfloat16, frozen=torch.bfloat16)

TINY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "text_length": 8}
MODELS = {
    "qwen_image": {
        "teacher": QwenImageTeacher,
        "sizes": {"height": 1024, "width": 1024, "text_length": 512},
        "tiny": {**TINY, "height": 32, "width": 32, "joint_attention_dim": 64},
        "plan": PhasePlan.uniform(2, steps=2, shift=3.0),
        "depth": 60,
    },
    "wan_a14b": {
        "teacher": WanTeacher,
        "sizes": {"height": 480, "width": 832, "frames": 33, "boundary_ratio": 0.0},
        "tiny": {**TINY, "height": 32, "width": 32, "ffn_dim": 64, "text_dim": 64, "frames": 5}
        | {"boundary_ratio": 0.0},
        "plan": PhasePlan.uniform(2, steps=2, shift=7.0),
        "depth": 40,
    },
}


class OutOfTime(Exception):
    """Too little of the budget is left for the next measurement."""


class Budget:
    """Seconds that a run may take."""

    def __init__(self, seconds):
        self.seconds, self.started = seconds, time.monotonic()

    @property
    def spent(self):
        return time.monotonic() - self.started

    def need(self, seconds, what):
        """Raises unless so many seconds are left."""
        if self.spent + seconds > self.seconds:
            raise OutOfTime(f"no time for {what}: {self.seconds - self.spent:.0f} s are left")


class Report:
    """The figures so far, written to a file whenever they change."""

    def __init__(self, path):
        self.path, self.figures = path, {"machine": {}, "models": {}, "left_out": {}}

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.figures, indent=2) + "\n")
        partial.replace(self.path)

    def leave_out(self, name, why):
        self.figures["left_out"][name] = why
        print(f"{name} is left out: {why}", file=sys.stderr, flush=True)
        self.write()


class Seldom(Recorder):
    """Never settles the steps within a measurement."""

    interval = 10**6


def build_teacher(name, tiny, **where):
    model = MODELS[name]
    sizes = {**model["tiny" if tiny else "sizes"], **where}
    return model["teacher"].from_config(dtype="bfloat16", **sizes)


def workload(name, batch):
    return Workload(
        plan=MODELS[name]["plan"],
        truncation=StochasticTruncation(),
        batch_size=batch,
        fake_updates=FAKE_UPDATES,
        evaluations=2,
        masked=name == "qwen_image",
        activation_checkpointing=True,
    )


def measured_roles(name, tiny, work, **sizes):
    """Measures the networks of the last phase on the meta device."""
    outline = build_teacher(name, tiny, meta=True, **sizes)
    condition = outline.encode(list(outline.prompts)[:1])
    return measure_roles(outline, ROLES, condition, work, precision=PRECISION)[-1]


def plan_model(name, tiny, batch):
    """Plans the last phase."""
    work = workload(name, batch)
    if tiny:
        roles = measured_roles(name, tiny, work)
    else:
        shallow = [measured_roles(name, tiny, work, num_layers=depth) for depth in DEPTHS]
        roles = deepen_roles(*shallow, DEPTHS, MODELS[name]["depth"])

    def passes(network):
        return {
            "forward": batch * network.flops,
            "backward": batch * network.backward_flops,
            "recomputed": batch * network.recomputed_flops,
        }

    return {
        "batch": batch,
        "parameters": roles.teacher.parameters,
        "tokens": roles.teacher.tokens,
        "gib": memory_of(roles, work, Degrees(), PRECISION).total / GIB,
        "roles": {role: passes(getattr(roles, role)) for role in ("teacher", "generator", "fake")},
        "cycle": flops_of(roles, work, len(work.plan) - 1),
    }


def build_trainer(name, teacher, device, batch):
    """Builds the trainer of the plan's last phase."""
    work = workload(name, batch)
    runtime = OneProcess(device, torch.bfloat16, activation_checkpointing=True)
    teacher = teacher.eval().requires_grad_(False)
    *before, last = work.plan
    earlier = [OdeExpert(ROLES.expert(teacher, phase, []), phase) for phase in before]
    for expert in earlier:
        runtime.placement.frozen(expert.denoiser).requires_grad_(False).eval()
    guided = runtime.placement.frozen(Guided(teacher, 4.0))
    recipe = AdamRecipe(lr=1e-5)
    return PhaseTrainer(
        experts=[OdeExpert(ROLES.expert(teacher, last, earlier), last)],
        earlier=earlier,
        teacher=guided,
        fakes=[[ROLES.fake(teacher, last)]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(teacher.encode(list(teacher.prompts)).to(device)),
        updates=10**6,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(optimizer=recipe, max_grad_norm=1.0),
        rollouts=Rollouts(
            batch_size=batch, truncation=work.truncation, phase_inputs=FreshPhaseInputs()
        ),
        fake_training=FakeScoreTraining(updates=FAKE_UPDATES, optimizer=recipe, max_grad_norm=1.0),
        session=Session(runtime=runtime, recorder=Seldom(), max_consecutive_skips=0),
    )


def timed(device, run, repeats=1):
    """Returns the median seconds of a function on a device."""
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def conditions_of(teacher, device, batch):
    """Returns a batch of conditions by name: whole texts, and half texts behind a mask."""
    one = teacher.encode(list(teacher.prompts)[:1])
    whole = repeat_condition(one, batch).to(device)
    if "mask" not in one.keys():
        return {"unmasked": whole}
    half = whole.clone()
    length = half["mask"].shape[1]
    whole["mask"] = torch.ones_like(whole["mask"])
    half["mask"] = (torch.arange(length, device=device) < length // 2).expand(batch, length)
    return {"unmasked": whole, "masked": half}


def role_measurements(trainer, condition, batch):
    """Yields what each role does, by name: a function to time, its role and its FLOPs' passes."""
    device = trainer.session.runtime.device
    expert, fake = trainer.experts[0].denoiser, trainer.fakes[0][0]
    x = torch.randn(batch, *expert.latent_shape, device=device)
    t = torch.full((batch,), 0.5, device=device, dtype=torch.float64)

    def frozen():
        with torch.no_grad():
            trainer.teacher(x, t, condition)

    def trained(network):
        network(x, t, condition).value.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    both = ("forward", "backward", "recomputed")
    yield "teacher, guided forward", frozen, "teacher", ("forward", "forward")
    yield "expert, forward and backward", lambda: trained(expert), "generator", both
    yield "fake score, forward and backward", lambda: trained(fake), "fake", both


def optimizer_seconds(trainer, device):
    """Returns the seconds of one step of each optimizer."""
    out = {}
    for role, network in trainer.networks.items():
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer = trainer.optimizers[role]
        optimizer.step()  # allocates its moments
        out[f"{role}, optimizer step"] = {"seconds": timed(device, optimizer.step, REPEATS)}
        optimizer.zero_grad(set_to_none=True)
    return out


def measure_model(name, plan, options, budget, report):
    """Measures one model and adds its figures to the report."""
    device, batch = torch.device(options.device), options.batch
    rate = report.figures["machine"]["nominal_flops"] or report.figures["machine"]["matmul_flops"]
    figures = {"plan": plan, "roles": {}, "cycles": []}
    expected = sum(plan["cycle"].values()) / (0.3 * rate)
    budget.need(expected / 10, f"{name}'s networks")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    teacher = build_teacher(name, options.tiny, device=device)
    trainer = build_trainer(name, teacher, device, batch)
    report.figures["models"][name] = figures
    figures["seconds_to_build"] = budget.spent
    for kind, condition in conditions_of(teacher, device, batch).items():
        for what, run, role, ways in role_measurements(trainer, condition, batch):
            flops = sum(plan["roles"][role][way] for way in ways)
            budget.need((1 + REPEATS) * flops / (0.2 * rate), f"{what}, {kind}")
            run()  # the first call allocates, and chooses kernels
            seconds = timed(device, run, REPEATS)
            figures["roles"][f"{what}, {kind}"] = {
                "seconds": seconds,
                "flops": flops,
                "utilisation": flops / seconds / rate,
            }
            report.write()
    figures["roles"] |= optimizer_seconds(trainer, device)
    for i in range(1 + options.cycles):
        budget.need(1.1 * (figures["cycles"][-1]["seconds"] if i else expected), f"cycle {i + 1}")
        seconds = timed(device, trainer.cycle)
        flops = sum(plan["cycle"].values())  # on average over the exit steps
        figures["cycles"].append({"seconds": seconds, "utilisation": flops / seconds / rate})
        if device.type == "cuda":
            figures["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        print(f"{name}: cycle {i + 1}, {seconds:.2f} s", file=sys.stderr, flush=True)
        report.write()
    trainer.settle()


def machine_of(device):
    """Measures a GPU's fastest matrix product and memory bandwidth."""
    cuda = device.type == "cuda"
    size, repeats = (8192, 9) if cuda else (256, 3)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    long = torch.empty(2**30 if cuda else 2**22, device=device, dtype=torch.uint8)
    other = torch.empty_like(long)
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory / GIB if cuda else None
    return {
        "name": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "memory_gib": memory,
        "matmul_flops": 2 * size**3 / timed(device, lambda: a @ a, repeats),
        "nominal_flops": next((rate for key, rate in NOMINAL.items() if key in name), None),
        "bytes_per_second": 2 * len(long) / timed(device, lambda: other.copy_(long), repeats),
    }


def parsed(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--seconds", type=float, default=480.0, help="the budget (480)")
    parser.add_argument("--cycles", type=int, default=3, help="cycles after the first (3)")
    parser.add_argument("--batch", type=int, default=1, help="samples of a rollout (1)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--memory", type=float, help="GiB to plan for; the GPU's by default")
    parser.add_argument("--tiny", action="store_true", help="networks of two blocks, for a test")
    options = parser.parse_args(arguments)
    options.models = options.models or list(MODELS)
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"MODEL is one of {', '.join(MODELS)}, got {', '.join(sorted(unknown))}")
    for name in ("cycles", "batch", "seconds"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("CUDA is not available; try --device cpu --tiny")
    return options


def main(arguments=None):
    options = parsed(arguments)
    budget = Budget(options.seconds)
    device, report = torch.device(options.device), Report(options.out)
    machine = report.figures["machine"] = machine_of(device)
    memory = options.memory or machine["memory_gib"]
    for name in options.models:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        plan = plan_model(name, options.tiny, options.batch)
        needed = plan["gib"]
        if memory and needed > COUNTED * memory:
            report.leave_out(
                name, f"it needs {needed:.3g} GiB of {COUNTED:.0%} of {memory:.3g} GiB"
            )
            continue
        try:
            measure_model(name, plan, options, budget, report)
        except (OutOfTime, torch.OutOfMemoryError) as error:
            report.leave_out(name, str(error).splitlines()[0])
    report.figures["seconds"] = budget.spent
    report.write()
    print(options.out)


if __name__ == "__main__":
    main()
