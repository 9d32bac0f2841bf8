"""Trials of schemes on a guided benchmark, at equal cost and on a seed that no table reports.

python docs/evidence/guided_search.py fashion                      # list the trials
python docs/evidence/guided_search.py fashion --data FOLDER all    # run those not yet measured
python docs/evidence/guided_search.py clips phased shift_3 --forwards 4000

Results are added to search_NAME.json, from which the evidence page is written.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from pdmd import PhasePlan
from pdmd.benchmarks import BenchConfig
from pdmd.benchmarks.base import benchmarks
from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS
from pdmd.benchmarks.schemes import SCHEMES
from pdmd.distillation.experts import FullGradient
from pdmd.distillation.initializers import FromPrevious
from pdmd.files import write_file
from pdmd.objectives import DistributionMatching, LogSnrTimes, SubintervalScoreMatching
from pdmd.training.fake_scores import FixedUpdates

HERE, FOLDER, SEED, FORWARDS = Path(__file__).parent, Path("runs/search"), 100, 2000
KEPT = (
    *("feature_distance", "vendi", "accuracy", "coverage", "precision"),
    *("relative_flow", "flow_spread", "boundary_1", "boundary_2", "boundary_3", "forwards"),
)
BUFFER, HALVES = SCHEMES["phased_buffer"], SCHEMES["phased_2x2"]
WHOLE = replace(HALVES, truncation=FullGradient())
LATER = replace(WHOLE, update_shares=(1, 3))


def rates(lr, fake_lr):
    return {"learning_rates": (lr, fake_lr)}


def fakes(scheme, number):
    setting = replace(scheme.efficiency, fake_updates=lambda most: FixedUpdates(number))
    return replace(scheme, efficiency=setting)


def uniform(phases, steps, shift):
    return {"plan": lambda: PhasePlan.uniform(phases, steps=steps, shift=shift)}


EARLY = {"guidance_interval": (0.5, 1.0)}
FAST = {
    "efficiency": SCHEMES["phased_fast_fake"].efficiency,
    "fake_rate_factor": SCHEMES["phased_fast_fake"].fake_rate_factor,
}

PUBLISHED = ("one_step", "vanilla", "sgts", "sgts_ode")
TRIALS = {
    **{name: SCHEMES[name] for name in PUBLISHED},
    **{f"{name}_3e-4": replace(SCHEMES[name], **rates(3e-4, 6e-4)) for name in PUBLISHED},
    **{f"{name}_1e-4": replace(SCHEMES[name], **rates(1e-4, 2e-4)) for name in PUBLISHED},
    **{f"{name}_3e-5": replace(SCHEMES[name], **rates(3e-5, 6e-5)) for name in PUBLISHED},
    **{f"{name}_1e-3": replace(SCHEMES[name], **rates(1e-3, 2e-3)) for name in PUBLISHED},
    **{f"{name}_5_fakes": fakes(SCHEMES[name], 5) for name in PUBLISHED},
    "phased": SCHEMES["phased"],
    "buffer": BUFFER,
    "buffer_3e-5": replace(BUFFER, **rates(3e-5, 6e-5)),
    "buffer_3e-5_fake_3e-4": replace(BUFFER, **rates(3e-5, 3e-4)),
    "buffer_3e-4": replace(BUFFER, **rates(3e-4, 6e-4)),
    "buffer_1e-4": replace(BUFFER, **rates(1e-4, 2e-4)),
    "buffer_1e-3": replace(BUFFER, **rates(1e-3, 2e-3)),
    "buffer_1_fake": fakes(BUFFER, 1),
    "buffer_5_fakes": fakes(BUFFER, 5),
    "buffer_10_fakes": fakes(BUFFER, 10),
    "buffer_shift_3": replace(BUFFER, **uniform(4, 1, 3.0)),
    "buffer_late": replace(BUFFER, update_shares=(1, 1, 1, 3)),
    "buffer_late_5": replace(BUFFER, update_shares=(1, 1, 1, 5)),
    "buffer_late_shift_3": replace(BUFFER, update_shares=(1, 1, 1, 3), **uniform(4, 1, 3.0)),
    "buffer_late_3e-5": replace(BUFFER, update_shares=(1, 1, 1, 3), **rates(3e-5, 6e-5)),
    "buffer_late_1e-4": replace(BUFFER, update_shares=(1, 1, 1, 3), **rates(1e-4, 2e-4)),
    "buffer_late_5_fakes": fakes(replace(BUFFER, update_shares=(1, 1, 1, 3)), 5),
    "buffer_late_previous": replace(
        BUFFER, update_shares=(1, 1, 1, 3), init=lambda init: FromPrevious()
    ),
    "buffer_late_3e-4": replace(BUFFER, update_shares=(1, 1, 1, 3), **rates(3e-4, 3e-4)),
    "buffer_previous": replace(BUFFER, init=lambda init: FromPrevious()),
    "buffer_4_times": replace(
        BUFFER, generator_objective=lambda: DistributionMatching(timestep_samples=4)
    ),
    "buffer_log_snr": replace(
        BUFFER,
        generator_objective=lambda: DistributionMatching(times=LogSnrTimes()),
        fake_objective=lambda: SubintervalScoreMatching(times=LogSnrTimes()),
    ),
    "2x2": HALVES,
    "2x2_3e-5": replace(HALVES, **rates(3e-5, 6e-5)),
    "2x2_1e-4": replace(HALVES, **rates(1e-4, 2e-4)),
    "2x2_buffer": replace(HALVES, efficiency=EFFICIENCY_SETTINGS["buffer"]),
    "2x2_buffer_5_fakes": fakes(replace(HALVES, efficiency=EFFICIENCY_SETTINGS["buffer"]), 5),
    "2x2_shift_3": replace(HALVES, **uniform(2, 2, 3.0)),
    "2x2_late": replace(HALVES, update_shares=(1, 2)),
    "2x2_later": replace(HALVES, update_shares=(1, 3)),
    "2x2_buffer_late": replace(
        HALVES, update_shares=(1, 2), efficiency=EFFICIENCY_SETTINGS["buffer"]
    ),
    "2x2_previous": replace(HALVES, init=lambda init: FromPrevious()),
    "2x2_full": WHOLE,
    "2x2_full_late": replace(WHOLE, update_shares=(1, 2)),
    "2x2_full_later": LATER,
    "2x2_full_last": replace(WHOLE, update_shares=(1, 7)),
    "2x2_full_last_3e-5": replace(WHOLE, update_shares=(1, 7), **rates(3e-5, 6e-5)),
    "vanilla_3e-5_fake_3e-4": replace(SCHEMES["vanilla"], **rates(3e-5, 3e-4)),
    "2x2_full_later_3e-5_fake_3e-4": replace(LATER, **rates(3e-5, 3e-4)),
    "2x2_full_last_buffer_3e-5": replace(
        WHOLE,
        update_shares=(1, 7),
        efficiency=EFFICIENCY_SETTINGS["buffer"],
        **rates(3e-5, 6e-5),
    ),
    "2x2_full_later_buffer": replace(LATER, efficiency=EFFICIENCY_SETTINGS["buffer"]),
    "2x2_full_later_1e-4": replace(LATER, **rates(1e-4, 2e-4)),
    "2x2_full_later_1e-3": replace(LATER, **rates(1e-3, 2e-3)),
    "2x2_full_later_1_fake": fakes(LATER, 1),
    "2x2_full_later_5_fakes": fakes(LATER, 5),
    "2x2_full_3e-5": replace(WHOLE, **rates(3e-5, 6e-5)),
    "2x2_full_late_3e-5": replace(WHOLE, update_shares=(1, 2), **rates(3e-5, 6e-5)),
    "2x2_full_later_3e-5": replace(LATER, **rates(3e-5, 6e-5)),
    "2x2_full_shift_3_3e-5": replace(WHOLE, **uniform(2, 2, 3.0), **rates(3e-5, 6e-5)),
    "1_3_full_3e-5": replace(WHOLE, **uniform(2, (1, 3), 1.0), **rates(3e-5, 6e-5)),
    "1_3_full_late_3e-5": replace(
        WHOLE, update_shares=(1, 2), **uniform(2, (1, 3), 1.0), **rates(3e-5, 6e-5)
    ),
    "1_3_full_late": replace(WHOLE, update_shares=(1, 2), **uniform(2, (1, 3), 1.0)),
    "1_3_full_late_1e-4": replace(
        WHOLE, update_shares=(1, 2), **uniform(2, (1, 3), 1.0), **rates(1e-4, 2e-4)
    ),
    "1_3_full_later": replace(LATER, **uniform(2, (1, 3), 1.0)),
    "1_3_full_last": replace(WHOLE, update_shares=(1, 7), **uniform(2, (1, 3), 1.0)),
    "1_3_full_last_3e-5": replace(
        WHOLE, update_shares=(1, 7), **uniform(2, (1, 3), 1.0), **rates(3e-5, 6e-5)
    ),
    "1_3_full_later_3e-5": replace(LATER, **uniform(2, (1, 3), 1.0), **rates(3e-5, 6e-5)),
    "3_1_full_3e-5": replace(WHOLE, **uniform(2, (3, 1), 1.0), **rates(3e-5, 6e-5)),
    "2x2_full_buffer_3e-5": replace(
        WHOLE, efficiency=EFFICIENCY_SETTINGS["buffer"], **rates(3e-5, 6e-5)
    ),
    "vanilla_early_guidance": replace(SCHEMES["vanilla"], **EARLY),
    "vanilla_1e-4_early_guidance": replace(SCHEMES["vanilla"], **rates(1e-4, 2e-4), **EARLY),
    "buffer_early_guidance": replace(BUFFER, **EARLY),
    "buffer_late_early_guidance": replace(BUFFER, update_shares=(1, 1, 1, 3), **EARLY),
    "2x2_full_later_early_guidance": replace(LATER, **EARLY),
    "buffer_fast_fake": replace(BUFFER, **FAST),
    "buffer_late_fast_fake": replace(BUFFER, update_shares=(1, 1, 1, 3), **FAST),
    "2x2_full_later_fast_fake": replace(LATER, **FAST),
    "2x2_1_fake": fakes(HALVES, 1),
    "2x2_5_fakes": fakes(HALVES, 5),
}


def measure(benchmark, scheme):
    SCHEMES["trial"] = scheme
    try:
        row, _ = benchmark.run("trial", SEED)
    finally:
        del SCHEMES["trial"]
    return {key: round(row[key], 4) for key in KEPT if key in row}


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("glyphs", "fashion", "clips"))
    parser.add_argument("trials", nargs="*", help="trials, or all; none lists them")
    parser.add_argument("--data", default="", help="folder of the files of Fashion-MNIST")
    parser.add_argument("--forwards", type=int, default=FORWARDS, help="cost of training")
    parser.add_argument("--guidance", type=float, default=0.0, help="the teacher's guidance scale")
    parser.add_argument("--out", default="", help="the results; search_NAME.json here by default")
    options = parser.parse_args()
    if not options.trials:
        print(*TRIALS, sep="\n")
        return
    names = [*TRIALS] if options.trials == ["all"] else options.trials
    unknown = sorted({*names} - {*TRIALS})
    if unknown:
        parser.error(f"no trials are called {', '.join(unknown)}; without names they are listed")
    torch.set_num_threads(1)
    name, out = options.benchmark, Path(options.out or HERE / f"search_{options.benchmark}.json")
    own = {"guidance": options.guidance} if options.guidance else {}
    config = BenchConfig(name=name, forwards=options.forwards, data=options.data, **own)
    folder = FOLDER / "_".join((name, *map(str, own.values())))
    benchmark = benchmarks[name](config, folder)
    benchmark.prepare(True)
    for trial in names:
        key = f"{trial} {options.forwards}"
        if key not in read(out):
            found = {**measure(benchmark, TRIALS[trial]), **own}
            write_file(out, json.dumps({**read(out), key: found}, indent=1) + "\n")
        print(key, read(out)[key], flush=True)


if __name__ == "__main__":
    main()
