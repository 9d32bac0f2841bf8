"""Plans two released models at growing sizes and writes the tables of docs/planning.md.

python docs/evidence/plan_table.py [--check | --measure]

--measure finds the largest image, or number of frames, that fits on each machine with each
setting, and writes plans.json; without an option the tables are written from it.

Footprints of all blocks and sizes follow from networks of two and three blocks at three sizes
(pdmd.planning.depth, pdmd.planning.sizes).
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import torch

from pdmd import LowRank, LowRankRoles, PhasePlan, StochasticTruncation
from pdmd.planning import Cluster, Degrees, Offload, Precision, Workload, measure_roles, memory_of
from pdmd.planning.depth import deepen_roles
from pdmd.planning.duration import seconds_of
from pdmd.planning.memory import EIGHT_BIT
from pdmd.planning.sizes import resize_roles
from pdmd.planning.tables import format_bytes
from pdmd.planning.traffic import flops_of, traffic_of
from pdmd.teachers import QwenImageTeacher, WanTeacher

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "plans.json", HERE.parent / "planning.md"
BEGIN, END = "<!-- tables: plan_table.py -->", "<!-- end of tables -->"
GIB = 2**30
MEMORY, NODE_MEMORY = 72.0, 1800.0  # GiB of a GPU's 80 and of a node's 2,048
SAMPLES, FAKE_UPDATES = 64, 5  # in every update
DEPTHS = (2, 3)

MODELS = {
    "qwen_image": {
        "teacher": QwenImageTeacher,
        "plan": PhasePlan.uniform(2, steps=2, shift=3.0),
        "depth": 60,
        "measured": [
            {"height": side, "width": side, "text_length": 512} for side in (256, 512, 1024)
        ],
        "ladders": {
            "largest image": [
                {"height": side, "width": side, "text_length": 512}
                for side in (512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096)
            ]
        },
    },
    "wan_a14b": {
        "teacher": WanTeacher,
        "plan": PhasePlan.from_timesteps((1.0, 0.9375, 0.875, 0.5, 0.0), steps=2),
        "depth": 40,
        "measured": [{"height": 480, "width": 832, "frames": frames} for frames in (1, 5, 33)],
        "ladders": {
            f"frames of {width} x {height}": [
                {"height": height, "width": width, "frames": frames}
                for frames in (1, 5, 17, 33, 49, 65, 81, 97, 121, 161, 201, 241)
            ]
            for height, width in ((480, 832), (720, 1280))
        },
    },
}
ADAPTER = LowRank(rank=64, alpha=8.0)
ROLES = {"paper": LowRankRoles(ADAPTER), "adapters": LowRankRoles(ADAPTER, ADAPTER)}
FROZEN = Offload(teacher=True, experts=True, averages=True)
EVERYTHING = dataclasses.replace(FROZEN, optimizers=True)
SETTINGS = {
    "": (4.0, Offload()),
    "8-bit Adam": (EIGHT_BIT, Offload()),
    "8-bit Adam, frozen networks and averages offloaded": (EIGHT_BIT, FROZEN),
    "frozen networks, averages and moments offloaded": (4.0, EVERYTHING),
}
MACHINES = (
    ("qwen_image", "paper", 8, (1, 8)),
    ("qwen_image", "adapters", 1, (1,)),
    ("wan_a14b", "paper", 8, (1, 8)),
    ("wan_a14b", "paper", 16, (1, 8)),
    ("wan_a14b", "adapters", 1, (1,)),
)
TITLES = {"qwen_image": "Qwen-Image", "wan_a14b": "Wan2.2 A14B"}
WORDS = {
    "paper": "experts as adapters of rank 64, fake score in full",
    "adapters": "experts and fake score as adapters of rank 64",
}


def workload(model, batch):
    """One sample on every data rank, accumulated."""
    accumulate = max(SAMPLES // batch, 1)
    return Workload(
        plan=MODELS[model]["plan"],
        truncation=StochasticTruncation(),
        batch_size=batch,
        fake_updates=FAKE_UPDATES,
        accumulate=accumulate,
        fake_accumulate=accumulate,
        evaluations=2,
        masked=model == "qwen_image",
        activation_checkpointing=True,
    )


def tokens_of(size):
    """Returns a sample's tokens: of 16 x 16 pixels, and of 4 frames after the first."""
    frames = (size.get("frames", 1) - 1) // 4 + 1
    return frames * (size["height"] // 16) * (size["width"] // 16)


@functools.cache
def shallow(model, kind):
    """Returns the footprints of every phase at the measured sizes, with all blocks."""
    out = []
    for size in MODELS[model]["measured"]:
        roles = []
        for depth in DEPTHS:
            teacher = MODELS[model]["teacher"].from_config(
                **size, num_layers=depth, dtype="bfloat16", meta=True
            )
            condition = teacher.encode(list(teacher.prompts)[:1])
            precision = Precision(compute=torch.bfloat16, frozen=torch.bfloat16)
            work = workload(model, 1)
            roles.append(measure_roles(teacher, ROLES[kind], condition, work, precision=precision))
        depth = MODELS[model]["depth"]
        out.append([deepen_roles(a, b, DEPTHS, depth) for a, b in zip(*roles, strict=True)])
    return out


@functools.cache
def footprints(model, kind, tokens):
    """Returns the footprints of every phase for samples of so many tokens."""
    phases = zip(*shallow(model, kind), strict=True)
    return [resize_roles(measured, tokens) for measured in phases]


def planned(model, kind, gpus, cp, setting, size):
    """Returns memory and seconds of the phase with the highest peak."""
    moment_bytes, offload = SETTINGS[setting]
    precision = Precision(compute=torch.bfloat16, frozen=torch.bfloat16, moment_bytes=moment_bytes)
    cluster = Cluster(gpus=gpus, memory=MEMORY, node_memory=NODE_MEMORY)
    # a network is sharded over all GPUs: over a node of eight, replicas do not fit better
    degrees = Degrees(dp_shard=gpus // cp, cp=cp)
    work, rows = workload(model, degrees.batches), []
    for k, roles in enumerate(footprints(model, kind, tokens_of(size))):
        memory = memory_of(roles, work, degrees, precision, offload)
        sent = traffic_of(roles, work, k, degrees, precision, offload)
        flops = sum(flops_of(roles, work, k).values())
        seconds = seconds_of(flops, sent, degrees, cluster)
        host = memory.host * cluster.gpus_on_node
        rows.append(
            {
                "phase": k + 1,
                "gib": memory.total / GIB,
                "node_gib": host / GIB,
                "seconds": seconds.total,
                "tokens": roles.generator.tokens,
                "moment": memory.moment,
                "memory": memory.items,
            }
        )
    top = max(rows, key=lambda row: row["gib"])
    fits = top["gib"] <= MEMORY and top["node_gib"] <= NODE_MEMORY
    return {**top, "seconds": max(row["seconds"] for row in rows), "fits": fits}


def largest(model, kind, gpus, cp, setting, ladder):
    """Returns the largest size that fits and the next one, by bisection."""
    plan = functools.partial(planned, model, kind, gpus, cp, setting)
    low, high = -1, len(ladder)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan(ladder[middle])["fits"] else (low, middle)
    found = {"size": ladder[low], **plan(ladder[low])} if low >= 0 else None
    beyond = {"size": ladder[high], **plan(ladder[high])} if high < len(ladder) else None
    return {"largest": found, "next": beyond}


def measure():
    """Writes the figures after every row."""
    rows = []
    for model, kind, gpus, degrees in MACHINES:
        for setting in SETTINGS:
            for cp in degrees:
                row = {"model": model, "roles": kind, "gpus": gpus, "cp": cp, "setting": setting}
                sizes = {
                    name: largest(model, kind, gpus, cp, setting, ladder)
                    for name, ladder in MODELS[model]["ladders"].items()
                }
                rows.append({**row, "sizes": sizes})
                print({**row, "sizes": {k: words(v) for k, v in sizes.items()}}, flush=True)
            figures = {"memory": MEMORY, "node_memory": NODE_MEMORY, "rows": rows}
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


def words(found):
    """Formats what fits, with its memory and seconds."""
    top = found["largest"]
    if top is None:
        return f"none ({found['next']['gib']:.0f} GiB)"
    size = top["size"]
    name = size["frames"] if "frames" in size else f"{size['height']} x {size['width']}"
    more = "" if found["next"] else " or more"
    return f"{name}{more} ({top['gib']:.0f} GiB, {seconds(top['seconds'])})"


def seconds(value):
    return f"{value:,.0f} s" if value < 6000 else f"{value / 3600:,.1f} h"


def text():
    figures, parts = json.loads(FIGURES.read_text()), [BEGIN]
    for model, kind, gpus, _ in MACHINES:
        chosen = [
            r
            for r in figures["rows"]
            if (r["model"], r["roles"], r["gpus"]) == (model, kind, gpus)
        ]
        if not chosen:
            continue
        names = list(MODELS[model]["ladders"])
        count = "one GPU" if gpus == 1 else f"{gpus} GPUs"
        parts.append(f"### {TITLES[model]} on {count} of 80 GB: {WORDS[kind]}")
        head = ["setting", "cp", *names, "CPU memory of a node"]
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for row in chosen:
            found = row["sizes"]
            hosts = [f["largest"]["node_gib"] for f in found.values() if f["largest"]]
            host = format_bytes(max(hosts) * GIB) if hosts and max(hosts) else "-"
            cells = [row["setting"] or "no offload", str(row["cp"])]
            cells += [words(found[name]) for name in names]
            lines.append("| " + " | ".join([*cells, host]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, END])


def page():
    before, rest = PAGE.read_text().split(BEGIN)
    return before + text() + rest.split(END)[1]


def main():
    if "--measure" in sys.argv:
        measure()
    if "--check" in sys.argv:
        if PAGE.read_text() != page():
            sys.exit("docs/planning.md does not match plans.json; run docs/evidence/plan_table.py")
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
