"""Plans the distillation of two released models and writes the tables of docs/planning.md.

python docs/evidence/plan_table.py [--check | --measure]

Without an option the tables are written from plans.json, which --measure regenerates.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import torch

from pdmd import (
    FromTeacher,
    LowRank,
    LowRankRoles,
    PhasePlan,
    RectifiedFlow,
    StochasticTruncation,
)
from pdmd.diffusion.denoisers import Denoiser
from pdmd.planning import Precision, Work, measure_roles, plan_roles
from pdmd.planning.tables import amount, size

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "plans.json", HERE.parent / "planning.md"
BEGIN, END = "<!-- tables: plan_table.py -->", "<!-- end of tables -->"
GPUS = (1, 8, 64)
MEMORY = 72.0  # of a GPU's 80 GiB; the rest is for memory that is not counted
SAMPLES = 64  # in an update of the expert


class QwenImage(Denoiser):
    def __init__(self):
        from diffusers import QwenImageTransformer2DModel

        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(4096, 64))
        self.transformer = QwenImageTransformer2DModel()

    def network(self, x_t, t, condition):
        return self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=condition["text"].to(x_t.dtype),
            timestep=t.to(x_t.dtype),
            img_shapes=[[(1, 64, 64)]] * len(x_t),
            return_dict=False,
        )[0]


class Wan(Denoiser):
    def __init__(self):
        from diffusers import WanTransformer3DModel

        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(16, 21, 60, 104))
        self.transformer = WanTransformer3DModel()

    def network(self, x_t, t, condition):
        text = condition["text"].to(x_t.dtype)
        return self.transformer(x_t, t.to(x_t.dtype), text, return_dict=False)[0]


def twice(footprint):
    """Returns the footprint of two networks of which one is evaluated."""
    root = dataclasses.replace(
        footprint.root, whole=2 * footprint.root.whole, split=2 * footprint.root.split
    )
    return dataclasses.replace(
        footprint, root=root, units=2 * footprint.units, under=2 * footprint.under
    )


MODELS = {
    "qwen_image": {
        "title": "Qwen-Image, 20 B, images of 1024 x 1024",
        "network": QwenImage,
        "text": (512, 3584),
        "plan": PhasePlan.uniform(2, steps=2, shift=3.0),
        "pair": False,
    },
    "wan_a14b": {
        "title": "Wan2.2 A14B, videos of 81 frames of 832 x 480",
        "network": Wan,
        "text": (512, 4096),
        "plan": PhasePlan.from_timesteps((1.0, 0.9375, 0.875, 0.5, 0.0), steps=2),
        "pair": True,
    },
}

ADAPTER = LowRank(rank=64, alpha=8.0)
ROLES = {"": FromTeacher(), "_lora": LowRankRoles(ADAPTER, ADAPTER)}


def measured():
    from tensordict import TensorDict

    settings = {"precision": Precision(compute=torch.bfloat16, frozen=torch.bfloat16)}
    out = {}
    for (name, model), (kind, init) in itertools.product(MODELS.items(), ROLES.items()):
        with torch.device("meta"):
            network = model["network"]()
            text = torch.empty(1, *model["text"], dtype=torch.bfloat16)
        condition = TensorDict({"text": text}, batch_size=[1])

        def work(gpus, plan=model["plan"]):
            return Work(
                plan=plan,
                truncation=StochasticTruncation(),
                batch_size=gpus,
                fake_updates=5,
                accumulate=SAMPLES // gpus,
                evaluations=2,
                activation_checkpointing=True,
            )

        roles = measure_roles(network, init, condition, work(1), **settings)
        if model["pair"]:  # the second phase's score range covers both networks
            pairs = [{"teacher": twice(r.teacher)} for r in roles]
            pairs[1]["fake"] = twice(roles[1].fake)
            roles = [dataclasses.replace(r, **pair) for r, pair in zip(roles, pairs, strict=True)]
        plans = [
            plan_roles(roles, work(n), name=name, gpus=n, memory=MEMORY, **settings) for n in GPUS
        ]
        out[name + kind] = [plan.figures() for plan in plans]
    return out


ROWS = {
    "parameters": ("teacher", "frozen", "generator", "average", "fake"),
    "gradients": ("generator_gradients", "fake_gradients"),
    "optimizer states": ("generator_optimizer", "fake_optimizer"),
    "activations": ("activations", "data"),
    "gathered and reduced": ("in_flight",),
}


def degrees(choice):
    names = {"dp_replicate": "replicate", "dp_shard": "shard", "cp": "cp", "tp": "tp"}
    return ", ".join(f"{word} {choice[key]}" for key, word in names.items() if choice[key] > 1)


def best(figures):
    """Returns the choice that fits and sends least, or else the one of least memory."""
    fitting = [c for c in figures["choices"] if c["fits"]]
    return fitting[0] if fitting else min(figures["choices"], key=lambda c: c["bytes"])


def table(plans):
    chosen = [best(figures) for figures in plans]
    head = ["per GPU", *(f"{f['gpus']} GPU{'s' * (f['gpus'] > 1)}" for f in plans)]
    rows = [["degrees", *(degrees(c) or "none" for c in chosen)]]
    for word, items in ROWS.items():
        rows.append([word, *(size(sum(c["memory"][i] for i in items)) for c in chosen)])
    rows.append(["**all**", *(f"**{size(c['bytes'])}**" for c in chosen)])
    rows.append(["fits 72 of 80 GiB", *("yes" if c["fits"] else "no" for c in chosen)])
    fits = [sum(c["fits"] for c in f["choices"]) for f in plans]
    counts = [f"{n} of {len(f['choices'])}" for n, f in zip(fits, plans, strict=True)]
    rows.append(["choices of degrees that fit", *counts])
    rows.append(["sent per cycle", *(size(c["sent"]) if c["sent"] else "-" for c in chosen)])
    last = [f["phases"][-1] for f in plans]
    rows.append(
        [
            "forward evaluations per cycle, all GPUs",
            *(
                f"{f['batch_size'] * sum(p['forward'].values()):,.0f}"
                for f, p in zip(plans, last, strict=True)
            ),
        ]
    )
    rows.append(
        [
            "of these, with a backward pass",
            *(
                f"{f['batch_size'] * sum(p['backward'].values()):,.0f}"
                for f, p in zip(plans, last, strict=True)
            ),
        ]
    )
    rows.append(
        [
            "FLOPs per cycle and GPU",
            *(
                amount(sum(p["flops"].values()) / f["gpus"])
                for f, p in zip(plans, last, strict=True)
            ),
        ]
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def degrees_table(figures, most=8):
    head = ["degrees", "memory", "fits", "sent", "parameters", "gradients", "tp", "cp"]
    rows = []
    for c in figures["choices"][:most]:
        t = c["traffic"]
        sent = (t["all_gather"], t["reduce_scatter"] + t["all_reduce"])
        sent += (t["tp_all_reduce"], t["cp_all_to_all"])
        rows.append(
            [
                degrees(c),
                size(c["bytes"]),
                "yes" if c["fits"] else "no",
                *(size(v) if v else "-" for v in (c["sent"], *sent)),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def text():
    parts = [BEGIN]
    for key, plans in json.loads(FIGURES.read_text()).items():
        name, adapted = key.removesuffix("_lora"), key.endswith("_lora")
        if adapted:
            factors = plans[-1]["phases"][-1]["generator"]["parameters"]
            words = (
                f"With experts and fake scores as adapters of rank {ADAPTER.rank} over one frozen "
                f"network, {factors / 1e6:,.0f} M parameters each:"
            )
            parts += [words, table(plans)]
            continue
        network = plans[-1]["phases"][-1]["generator"]
        forward, backward, recomputed = (
            amount(network[f"{way}_flops"]) + "FLOPs"
            for way in ("forward", "backward", "recomputed")
        )
        parts += [
            f"### {MODELS[name]['title']}",
            f"{network['parameters'] / 1e9:.1f} B parameters in {network['units']} blocks, "
            f"{network['tokens']:,} tokens of latents; one evaluation of one sample takes "
            f"{forward}, its backward pass {backward}, and recomputing the blocks {recomputed}.",
            table(plans),
            "The degrees on 64 GPUs that send the least:",
            degrees_table(plans[-1]),
        ]
    return "\n\n".join([*parts, END])


def page():
    before, rest = PAGE.read_text().split(BEGIN)
    return before + text() + rest.split(END)[1]


def main():
    if "--measure" in sys.argv:
        FIGURES.write_text(json.dumps(measured()) + "\n")
    if "--check" in sys.argv:
        if PAGE.read_text() != page():
            sys.exit("docs/planning.md does not match plans.json; run docs/evidence/plan_table.py")
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
