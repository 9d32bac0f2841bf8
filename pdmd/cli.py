"""The command line: a thin skin over the library.

Every command ends with exit code 0, 2 for bad input (one line, with the remedy), 1 for a run that
failed, or 130 for one that was stopped on request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from pdmd.students import Student
    from pdmd.training.config import DistillConfig

__all__ = ["main"]

USAGE = """\
usage: pdmd COMMAND [options]

Distills diffusion and flow models into few-step mixtures of experts by Phased DMD.

commands:
  distill [PRESET_OR_TOML]  distill a teacher (presets: {presets}; default digits)
  sample STUDENT            draw samples from a student folder
  evaluate STUDENT          compare a student with its teacher
  teach NAME                train a shipped network again: digits, digits-classifier
  report RUN                write a run folder's report.html again
  teachers                  list the registered teachers
  objectives                list the registered objectives and their weights

'pdmd COMMAND --help' describes a command. Start with: pdmd distill digits
"""


@dataclass(kw_only=True)
class _RunOptions:
    """How to run."""

    resume: bool = False
    """Go on from the run folder's checkpoint."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder."""
    progress: bool = True
    """Show progress bars."""


@dataclass(kw_only=True)
class SampleOptions:
    """Draws samples from a student folder."""

    prompts: tuple[str, ...] = ()
    """Prompts, one sample of each and repeated up to --n; the teacher's own by default."""
    n: int = 100
    """Number of samples."""
    seed: int = 0
    """Seed of the noise."""
    out: str = "samples.png"
    """An image (.png) or the latents (.safetensors)."""


@dataclass(kw_only=True)
class EvaluateOptions:
    """Compares a student with its teacher and prints the table."""

    samples: int = 2000
    """Samples of each method."""
    teacher_steps: int = 50
    """Steps of the teacher's own sampling."""
    seed: int = 1234
    """Seed of every draw."""
    guidance: float | None = None
    """The teacher's guidance scale; by default the one the student was distilled with."""
    out: str = ""
    """Also write the rows to this JSON file."""


@dataclass(kw_only=True)
class TeachOptions:
    """Trains a shipped network again, from the images."""

    out: str = ""
    """The safetensors file to write; NAME.safetensors by default."""
    updates: int = 0
    """Updates; 0 takes those of the shipped weights."""
    seed: int = 0
    """Seed of every draw."""


class UsageError(ValueError):
    """The command line's words are off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after ``pdmd``; the process's own by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        from pdmd.training.config import presets

        print(USAGE.format(presets=", ".join(presets())), end="")
        return 0
    if words[0] == "--version":
        from pdmd import __version__

        print(__version__)
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "distill": _distill,
        "sample": _sample,
        "evaluate": _evaluate,
        "teach": _teach,
        "report": _report,
        "teachers": _teachers,
        "objectives": _objectives,
    }
    try:
        if words[0] not in commands:
            raise UsageError(f"unknown command {words[0]!r}; choose one of {', '.join(commands)}")
        return commands[words[0]](words[1:])
    except (ValueError, OSError) as error:
        print(f"pdmd: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pdmd: stopped", file=sys.stderr)
        return 130


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _take_name(words: list[str], what: str, default: str | None = None) -> tuple[str, list[str]]:
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if default is None and not {"-h", "--help"} & set(words):
        raise UsageError(f"missing {what}")
    return default or "", words


def _parse(cls: Any, words: list[str], prog: str, default: Any = None, **kwargs: Any) -> Any:
    import tyro

    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                cls,
                args=words,
                prog=prog,
                default=default if default is not None else cls(),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)
                if kwargs.get("flat")
                else (tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"[─-╿]", " ", re.sub(r"\x1b\[[0-9;]*m", "", caught.getvalue()))
        text = " ".join(text.split())
        text = text.removeprefix("Parsing error ").removeprefix("Unrecognized options ")
        raise UsageError(
            f"{text[:400]} ('{prog.split(' [')[0]} --help' lists the options)"
        ) from None


# ------------------------------------------------------------------------------------ distill


def _distill(words: list[str]) -> int:
    import tyro

    from pdmd.training.config import DistillConfig, load_config

    name, rest = _take_name(words, "a preset or TOML file", "digits")
    config = load_config(name)

    command = dataclasses.make_dataclass(
        "Distill",
        [
            ("run", Annotated[_RunOptions, tyro.conf.arg(name="")]),
            ("config", Annotated[DistillConfig, tyro.conf.arg(name="")]),
        ],
    )
    command.__doc__ = DistillConfig.__doc__
    default = command(_RunOptions(), config)
    try:
        parsed = _parse(command, rest, "pdmd distill [PRESET_OR_TOML]", default)
    except SystemExit:
        return 0
    config, options = parsed.config, parsed.run
    config.check()
    return run_distillation(config, options, name)


def run_distillation(config: DistillConfig, options: _RunOptions, name: str) -> int:
    """Runs the main job: distills, samples, evaluates and reports.

    Args:
        config: A checked configuration.
        options: How to run.
        name: The preset or file, for messages.

    Returns:
        The exit code.
    """
    from pdmd.distill import check_teacher, distill
    from pdmd.experts import experts
    from pdmd.students import describe_plan
    from pdmd.training.checkpoint import Checkpointer, Interrupted
    from pdmd.training.config import write_config
    from pdmd.training.initializers import FromDenoiser, FromPrevious, FromTeacher
    from pdmd.training.phase_trainer import NonFiniteError
    from pdmd.training.recorder import RunRecorder

    started = time.perf_counter()
    folder = Path(config.out)
    fingerprint = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "evaluate")
    }
    checkpointer = Checkpointer(
        folder / "checkpoint", every=config.train.checkpoint_every, fingerprint=fingerprint
    )
    _check_folder(folder, checkpointer, options)
    teacher = config.teacher.build()
    plan = config.plan.build()
    generator, fake_score = config.objective.build()
    check_teacher(teacher, plan, generator, teacher.encode(teacher.prompts))
    if options.resume:
        checkpointer.read()

    if options.overwrite and not options.resume:
        _clear(folder, checkpointer)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.toml")
    _write_plan(folder, plan, teacher.schedule, describe_plan(plan))
    source: dict[str, Any] = {
        "teacher": config.teacher.name,
        "arguments": config.teacher.arguments,
    }
    init: Any
    if any(True for _ in teacher.parameters()):
        init = FromTeacher() if config.train.init == "teacher" else FromPrevious()
    else:
        network, source["network"] = _taught_network(config, teacher, options.progress)
        init = FromDenoiser(network)
    optimizer, fake_optimizer = config.train.recipes()
    print(
        f"distilling {config.teacher.name} into {len(plan)} experts, {plan.nfe} steps -> {folder}"
    )
    try:
        with _stop_on_signal(checkpointer):
            student = distill(
                teacher,
                plan,
                generator=generator,
                fake_score=fake_score,
                init=init,
                expert=experts[config.train.expert],
                truncation=config.train.build_truncation(),
                updates=config.train.updates,
                fake_updates=config.train.fake_updates,
                batch_size=config.train.batch_size,
                optimizer=optimizer,
                fake_optimizer=fake_optimizer,
                ema=config.train.ema,
                clip=config.train.clip,
                seed=config.train.seed,
                recorder=RunRecorder(folder, progress=options.progress),
                checkpointer=checkpointer,
                resume=options.resume,
                source=source,
            )
    except Interrupted as stop:
        print(
            f"pdmd: {stop}; go on with: pdmd distill {folder / 'config.toml'} --resume",
            file=sys.stderr,
        )
        return 130
    except NonFiniteError as error:
        print(f"pdmd: error: {_one_line(error)}", file=sys.stderr)
        return 1
    student.save(folder / "student")
    _finish(config, folder, student, teacher, repr(generator), repr(fake_score), options, started)
    checkpointer.clear()
    return 0


def _finish(
    config: DistillConfig,
    folder: Path,
    student: Student,
    teacher: Any,
    generator: str,
    fake_score: str,
    options: _RunOptions,
    started: float,
) -> None:
    from pdmd.evaluation.evaluate import evaluate, format_table
    from pdmd.evaluation.report import write_grids, write_report

    seconds = time.perf_counter() - started
    plan, train = student.plan, config.train
    per_update = 2 if config.teacher.guidance != 1 else 1
    entry = sum(
        phase.index
        * train.updates
        * (train.fake_updates + 1)
        * train.batch_size
        * sum(p.steps for p in plan.phases[: phase.index])
        / max(phase.index, 1)
        for phase in plan
    )
    rollouts = sum((phase.steps + 1) / 2 for phase in plan) * train.batch_size * train.updates
    samples = len(plan) * train.updates * train.batch_size
    summary = {
        "teacher": config.teacher.name,
        "guidance": config.teacher.guidance,
        "generator_objective": generator,
        "fake_objective": fake_score,
        "parameters": sum(p.numel() for p in student.experts[0].parameters()),
        "seconds": round(seconds, 1),
        "evaluations": {
            "teacher": int(samples * per_update),
            "generator": int(rollouts * (train.fake_updates + 1)),
            "fake": int(samples * (train.fake_updates + 1)),
            "frozen": int(entry),
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    metrics = evaluate(
        student,
        teacher,
        samples=config.evaluate.samples,
        seed=config.evaluate.seed,
        teacher_steps=config.evaluate.teacher_steps,
        progress=options.progress,
    )
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_grids(folder, student, teacher)
    report = write_report(folder)
    print(format_table(metrics["rows"]))
    print(f"student  {folder / 'student'}")
    print(f"report   {report}")


def _check_folder(folder: Path, checkpointer: Any, options: _RunOptions) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    if options.resume:
        if not checkpointer.exists():
            raise ValueError(f"{folder} has no checkpoint to resume; run without --resume")
        return
    if options.overwrite:
        if folder.exists() and any(folder.iterdir()) and not (folder / "config.toml").exists():
            raise ValueError(
                f"{folder} is not a run folder, so it is not overwritten; choose another --out"
            )
        return
    if checkpointer.exists():
        raise ValueError(f"{folder} holds an unfinished run; use --resume to go on or --overwrite")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty; choose another --out, or replace it with --overwrite"
        )


def _clear(folder: Path, checkpointer: Any) -> None:
    import shutil

    checkpointer.clear()
    for name in ("student", "tensorboard", "grids", "checkpoint"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (
        "history.jsonl",
        "calibration.json",
        "metrics.json",
        "summary.json",
        "report.html",
        "plan.json",
    ):
        (folder / name).unlink(missing_ok=True)


def _write_plan(folder: Path, plan: Any, schedule: Any, description: list[dict[str, Any]]) -> None:
    import math

    for phase, entry in zip(plan, description, strict=True):
        values = [float(schedule.log_snr(t)) for t in (*phase.timesteps, phase.t_end)]
        entry["log_snr"] = [v if math.isfinite(v) else None for v in values]
    content = {"schedule": repr(schedule), "phases": description}
    (folder / "plan.json").write_text(json.dumps(content, indent=2) + "\n")


def _taught_network(
    config: DistillConfig, teacher: Any, progress: bool
) -> tuple[Any, dict[str, Any]]:
    import torch

    from pdmd.teachers.base import networks
    from pdmd.training.teaching import teach

    teacher = getattr(teacher, "teacher", teacher)
    if not hasattr(teacher, "sample"):
        raise ValueError(
            f"{config.teacher.name} has neither weights nor samples to teach a network on"
        )
    arguments = {
        "dim": teacher.latent_shape[0],
        "classes": teacher.classes,
        "width": config.network.width,
        "depth": config.network.depth,
    }
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        network = networks[config.network.name](**arguments)
    prompts = teacher.encode(teacher.prompts)

    def source(n: int, generator: torch.Generator) -> tuple[Any, Any]:
        condition = None
        if prompts is not None:
            condition = prompts[torch.randint(len(teacher.prompts), (n,), generator=generator)]
        return teacher.sample(n, condition, generator=generator), condition

    taught = teach(
        network, source, updates=config.network.updates, seed=config.train.seed, progress=progress
    )
    return taught, {"name": config.network.name, "arguments": arguments}


@contextlib.contextmanager
def _stop_on_signal(checkpointer: Any) -> Iterator[None]:
    def request(number: int, frame: Any) -> None:
        if checkpointer.stop_requested:
            raise KeyboardInterrupt
        checkpointer.stop_requested = True
        print("\npdmd: stopping after this update (once more to stop at once)", file=sys.stderr)

    previous = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------- the other commands


def _student(words: list[str]) -> tuple[Student | None, list[str], Path]:
    from pdmd.students import Student

    name, rest = _take_name(words, "the student folder, such as runs/digits/student")
    if {"-h", "--help"} & set(rest):
        return None, rest, Path(name)
    path = Path(name)
    if not (path / "student.json").exists() and (path / "student" / "student.json").exists():
        path = path / "student"
    return Student.load(path), rest, path


def _sample(words: list[str]) -> int:
    import torch

    from pdmd.sampling import sample

    student, rest, _ = _student(words)
    try:
        options = _parse(SampleOptions, rest, "pdmd sample STUDENT", flat=True)
    except SystemExit:
        return 0
    assert student is not None and student.source is not None
    if options.n < 1:
        raise ValueError(f"--n must be at least 1, got {options.n}")
    out = Path(options.out)
    if out.suffix not in (".png", ".safetensors"):
        raise ValueError(f"--out ends in .png or .safetensors, got {options.out!r}")
    teacher = _teacher_of(student)
    prompts = list(options.prompts) or list(teacher.prompts)
    prompts = [prompts[i % len(prompts)] for i in range(options.n)]
    generator = torch.Generator().manual_seed(options.seed)
    x = sample(student, student.encode(prompts), batch=options.n, generator=generator)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({"latents": x}, out, metadata={"prompts": json.dumps(prompts)})
    else:
        from pdmd.evaluation.figures import image_grid

        if not hasattr(teacher, "decode"):
            raise ValueError("this student does not make images; use --out samples.safetensors")
        columns = len(teacher.prompts) if not options.prompts else min(10, options.n)
        image_grid(teacher.decode(x), columns=columns).savefig(out, dpi=130)
    print(f"{options.n} samples in {student.plan.nfe} evaluations each -> {out}")
    return 0


def _teacher_of(student: Student) -> Any:
    from pdmd.teachers.base import teachers

    assert student.source is not None
    return teachers[student.source["teacher"]](**student.source.get("arguments", {}))


def _evaluate(words: list[str]) -> int:
    import tomllib

    from pdmd.evaluation.evaluate import evaluate, format_table
    from pdmd.teachers.guided import Guided

    student, rest, path = _student(words)
    try:
        options = _parse(EvaluateOptions, rest, "pdmd evaluate STUDENT", flat=True)
    except SystemExit:
        return 0
    assert student is not None
    if options.samples < 100:
        raise ValueError(f"--samples must be at least 100, got {options.samples}")
    teacher = _teacher_of(student)
    guidance = options.guidance
    config = path.parent / "config.toml"
    if guidance is None and config.is_file():
        guidance = tomllib.loads(config.read_text()).get("teacher", {}).get("guidance")
    if guidance not in (None, 1.0):
        teacher = Guided(teacher, guidance)
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
    name, rest = _take_name(words, "what to teach: digits or digits-classifier")
    try:
        options = _parse(TeachOptions, rest, "pdmd teach NAME", flat=True)
    except SystemExit:
        return 0
    if name not in ("digits", "digits-classifier"):
        raise ValueError(f"cannot teach {name!r}; choose digits or digits-classifier")
    if options.updates < 0:
        raise ValueError(f"--updates must not be negative, got {options.updates}")
    out = Path(options.out or f"{name}.safetensors")
    more = {"updates": options.updates} if options.updates else {}
    if name == "digits":
        from pdmd.training.teaching import teach_digits

        teach_digits(seed=options.seed, **more).save(out)  # type: ignore[operator]
    else:
        from safetensors.torch import save_file

        from pdmd.evaluation.features import train_digits_classifier

        steps = {"steps": options.updates} if options.updates else {}
        classifier = train_digits_classifier(**steps)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(classifier.layers.state_dict(), out)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB)")
    return 0


def _report(words: list[str]) -> int:
    from pdmd.evaluation.report import write_report

    name, _ = _take_name(words, "the run folder, such as runs/digits")
    if not name:
        print("usage: pdmd report RUN\n\nWrites a run folder's report.html again.")
        return 0
    if not (Path(name) / "config.toml").is_file():
        raise ValueError(f"{name} is not a run folder: it has no config.toml")
    print(write_report(Path(name)))
    return 0


def _teachers(words: list[str]) -> int:
    from pdmd.teachers.base import teachers

    if {"-h", "--help"} & set(words):
        print("usage: pdmd teachers\n\nLists the registered teachers.")
        return 0
    print(
        f"{'name':<12} {'predicts':<12} {'schedule':<16} {'latents':<12} {'parameters':>10}  times"
    )
    for name in teachers:
        teacher = teachers[name]()
        low, high = teacher.time_range
        shape = "x".join(map(str, teacher.latent_shape))
        count = sum(p.numel() for p in teacher.parameters())
        print(
            f"{name:<12} {teacher.kind:<12} {type(teacher.schedule).__name__:<16} {shape:<12} "
            f"{count or 'exact':>10}  [{low:g}, {high:g}]"
        )
    return 0


def _objectives(words: list[str]) -> int:
    from pdmd.objectives import gap_weights, weightings
    from pdmd.objectives.base import objectives

    if {"-h", "--help"} & set(words):
        print("usage: pdmd objectives\n\nLists the registered objectives and their weights.")
        return 0
    for title, registry in (
        ("objectives", objectives),
        ("distribution-matching weights (--objective.weight)", gap_weights),
        ("score-matching weightings (--objective.weighting)", weightings),
    ):
        print(title)
        for name in registry:
            summary = (registry[name].__doc__ or "").strip().splitlines()[0]
            summary = re.sub(r":math:`([^`]*)`", r"\1", summary)
            print(f"  {name:<24} {summary}")
    return 0
