"""The commands beside the main job, such as evaluate, bench and the lists."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdmd.arguments import check_numbers, no_more, parse, take_name
from pdmd.commands_check import check_command, teachers_command
from pdmd.commands_embed import run_embed
from pdmd.commands_export import export
from pdmd.commands_sample import STUDENT, load_student, run_sample

__all__ = ["COMMANDS"]


@dataclass(kw_only=True)
class EvaluateOptions:
    """Compares a student with its teacher and prints the table."""

    samples: int = 2000
    """Samples of each method."""
    teacher_steps: int = 50
    """Steps of the teacher's own sampling."""
    seed: int = 1234
    """Seed of every draw."""
    guidance: tuple[float, ...] = ()
    """The teacher's guidance scale; by default the one the student was distilled with."""
    out: str = ""
    """Also write the rows to this JSON file."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the student's teacher."""


@dataclass(kw_only=True)
class TeachOptions:
    """Trains a shipped network again, from the images."""

    out: str = ""
    """The safetensors file to write, NAME.safetensors by default; of glyphs the folder."""
    updates: int = 0
    """Updates; 0 takes those of the shipped weights."""
    seed: int | None = None
    """Seed of every draw; by default that of the shipped weights."""


@dataclass(kw_only=True)
class BenchOptions:
    """Compares few-step methods on equal terms and writes a results file.

    toy1d, mixture and digits measure quality; cost counts evaluations of networks; overhead and
    speed are timings, to be run on an idle machine. In speed the methods are sizes of networks
    (mlp, transformer_small, transformer_medium), the updates those that are timed of every
    contestant, and a peer takes part if it is installed: pip install 'pdmd[bench]'.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every method runs with each."""
    methods: tuple[str, ...] = ()
    """Methods; all by default."""
    out: str = ""
    """The results file; runs/bench_NAME.json by default. An unfinished one goes on."""
    workers: int = 0
    """Runs at a time, each on one thread; 0 takes one for every core."""
    data_seed: int = 7
    """Seed of the data: the mixture's means, the split of the digits."""
    dim: int = 16
    """Dimension of the mixture."""
    modes: int = 8
    """Modes in each of the mixture's classes."""
    classes: int = 8
    """Classes of the mixture."""
    updates: int = 0
    """Generator updates in all; 0 takes the benchmark's."""
    fake_updates: int = 0
    """Fake updates before each of them, for methods that set none; 0 takes the benchmark's."""
    batch_size: int = 0
    """Samples in each update; 0 takes the benchmark's."""
    lr: float = 0.0
    """The generator's learning rate; 0 takes the benchmark's."""
    fake_lr: float = 0.0
    """The fake score's learning rate; 0 takes the benchmark's."""
    samples: int = 0
    """Samples measured; 0 takes the benchmark's."""
    device: str = "cpu"
    """Where speed computes: cpu or cuda."""
    progress: bool = True
    """Show a progress bar."""


def _evaluate(words: list[str]) -> int:
    from pdmd.evaluation.evaluate import evaluate, format_table
    from pdmd.student_folders import schedule_of
    from pdmd.teachers.guided import guided, unguided
    from pdmd.teachers.rebased import rebased

    name, rest = take_name(words, STUDENT)
    options = parse(EvaluateOptions, rest, "pdmd evaluate STUDENT", flat=True)
    check_numbers(options, samples=(100, 10**6), teacher_steps=(1, 10**4), seed=(0, 2**63 - 1))
    student, teacher = load_student(name, options.plugins)
    source = student.source or {}
    teacher = guided(unguided(teacher), options.guidance or source.get("guidance", 1.0))
    teacher = rebased(teacher, *schedule_of(source))
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    metrics = evaluate(
        student,
        teacher,
        samples=options.samples,
        seed=options.seed,
        teacher_steps=options.teacher_steps,
    )
    print(format_table(metrics["rows"]))
    if options.out:
        Path(options.out).write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


def _teach(words: list[str]) -> int:
    known = f"{', '.join([*TAUGHT][:-1])} or {[*TAUGHT][-1]}"
    name, rest = take_name(words, f"what to teach: {known}")
    options = parse(TeachOptions, rest, "pdmd teach NAME", flat=True)
    if name not in TAUGHT:
        raise ValueError(f"cannot teach {name!r}; choose {known}")
    if options.updates < 0:
        raise ValueError(f"--updates must not be negative, got {options.updates}")
    default, teach = TAUGHT[name]
    out = Path(options.out or default)
    out.parent.mkdir(parents=True, exist_ok=True)  # for its errors, before any work
    more = {"updates": options.updates or None, "seed": options.seed}
    teach(out, {key: value for key, value in more.items() if value is not None})
    size = sum(p.stat().st_size for p in (out, *out.rglob("*")) if p.is_file())
    print(f"wrote {out} ({size / 1e6:.2f} MB)")
    return 0


def _teach_digits(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.training.teaching import teach_digits

    teach_digits(**chosen).save(out)


def _teach_digits_classifier(out: Path, chosen: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    from pdmd.evaluation.classifier import train_digits_classifier

    save_file(train_digits_classifier(**chosen).layers.state_dict(), out)


def _teach_glyphs(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.training.teaching_glyphs import teach_glyphs

    teach_glyphs(out, **chosen)


def _teach_glyph_classifier(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.evaluation.glyph_classifier import train_glyph_classifier

    train_glyph_classifier(**chosen).save(out)


TAUGHT: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None]]] = {
    "digits": ("digits.safetensors", _teach_digits),
    "digits-classifier": ("digits-classifier.safetensors", _teach_digits_classifier),
    "glyphs": ("glyphs", _teach_glyphs),
    "glyph-classifier": ("glyph-classifier.safetensors", _teach_glyph_classifier),
}
"""What can be taught: where it goes by default, and what teaches it."""


def _bench(words: list[str]) -> int:
    from pdmd.benchmarks import BenchConfig, run_benchmark
    from pdmd.benchmarks.base import benchmarks
    from pdmd.evaluation.bench_report import summarise, write_bench_report
    from pdmd.evaluation.evaluate import format_table

    name, rest = take_name(words, "the benchmark: toy1d, mixture, digits, cost, overhead or speed")
    options = parse(BenchOptions, rest, "pdmd bench NAME", flat=True)
    numbers = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(BenchConfig)}
    config = BenchConfig(**{**numbers, "name": name})
    out = Path(options.out or f"runs/bench_{name}.json")
    if out.suffix != ".json":
        raise ValueError(f"--out ends in .json, got {options.out!r}")
    for reason in benchmarks[name](config, out.parent).left_out().values():
        print(f"pdmd: warning: {reason}", file=sys.stderr)
    try:
        results = run_benchmark(
            config,
            out=out,
            seeds=options.seeds,
            methods=options.methods,
            workers=options.workers,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        print(f"pdmd: stopped; what is done is in {out}; run again to go on", file=sys.stderr)
        return 130
    rows = [
        {k: v[0] if isinstance(v, tuple) else v for k, v in entry.items()}
        for entry in summarise(results["rows"])
    ]
    print(format_table(rows))
    print(f"results  {out}")
    print(f"report   {write_bench_report(results, out.with_suffix('.html'))}")
    return 0


def _report(words: list[str]) -> int:
    from pdmd.benchmarks import read_results
    from pdmd.evaluation.bench_report import write_bench_report
    from pdmd.evaluation.report import write_report

    name, rest = take_name(words, "a run folder, such as runs/digits, or a results file")
    no_more([word for word in rest if word not in ("-h", "--help")])
    if not name:
        print(
            "usage: pdmd report PATH\n\nWrites report.html of a run folder, or the page of a "
            "results file of 'pdmd bench'."
        )
        return 0
    path = Path(name)
    if path.suffix == ".json":
        print(write_bench_report(read_results(path), path.with_suffix(".html")))
        return 0
    if not (path / "config.toml").is_file():
        raise ValueError(f"{name} is neither a run folder nor a results file (.json)")
    print(write_report(path))
    return 0


def _objectives(words: list[str]) -> int:
    from pdmd.objectives import gap_weights, weightings
    from pdmd.objectives.base import objectives

    if {"-h", "--help"} & set(words):
        print("usage: pdmd objectives\n\nLists the registered objectives and their weights.")
        return 0
    no_more(words)
    for title, registry in (
        ("objectives", objectives),
        ("distribution-matching weights (--objective.weight)", gap_weights),
        ("score-matching weightings (--objective.weighting)", weightings),
    ):
        print(title)
        for name in registry:
            summary = (registry[name].__doc__ or "").strip().splitlines()[0]
            print(f"  {name:<24} {summary}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "embed": run_embed,
    "sample": run_sample,
    "evaluate": _evaluate,
    "export": export,
    "teach": _teach,
    "bench": _bench,
    "report": _report,
    "check": check_command,
    "teachers": teachers_command,
    "objectives": _objectives,
}
"""The commands by name; each takes the words after its name and returns the exit code."""
