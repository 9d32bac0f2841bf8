"""The model hub: what is uploaded of a student or an export, and the card of a student.

A student is uploaded as :meth:`~pdmd.distillation.students.Student.save` wrote it, so that
:meth:`~pdmd.distillation.students.Student.from_pretrained` reads it. From the run it came from
come the plan, the settings, the metrics, the report and the samples. Of an exported folder, the
files that the export wrote and its card are uploaded. Weights are compared with the digests that
were written with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.student_folders import plan_from_description, read_description
from pdmd.distillation.student_sizes import checksum
from pdmd.documents import naming, read_json
from pdmd.export.atomic_export import LISTING
from pdmd.export.bases import check_links
from pdmd.export.markdown import escaped
from pdmd.extras import require
from pdmd.files import is_hub_name, own_digest

__all__ = ["HubFile", "files_to_push", "left_out", "push", "student_card"]

CARD = "README.md"
REMEDY = "export again or restore the file"

BESIDE = ("plan.json", "config.toml", "metrics.json", "notices.json", "report.html")
"""Files of a run that are uploaded with its student."""
PICTURES = ("samples.png", "prompts.png", "phase_*.png")
"""Samples of a run, of its folder ``grids``."""

TEACHER = (
    "Its teacher was not loaded from the hub: pass the one that it was distilled from, which "
    "encodes the prompts."
)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file to upload.

    Attributes:
        path: Its path in the repository.
        content: Its bytes, or the local file.
    """

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """Its size in bytes."""
        content = self.content
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def files_to_push(folder: str | Path, repository: str) -> list[HubFile]:
    """Returns what of a folder is uploaded.

    Args:
        folder: A run folder, a student's folder, or an export with its card.
        repository: The name on the hub, ``user/name``, for the card.

    Raises:
        ValueError: If it is neither, is damaged, or a link among the files leads out of it.
    """
    folder = Path(folder)
    student = _student_folder(folder)
    if student is not None:
        return _student_files(student, repository)
    known = (folder / "model_index.json").is_file() or any(folder.rglob("*.safetensors"))
    if not (folder / CARD).is_file() or not known:
        raise ValueError(
            f"{folder} is neither a run, nor a student, nor an export with its README.md; distill "
            "or export first"
        )
    if (folder / LISTING).is_file():
        digests = _listed(folder)
    else:
        digests = {path: "" for path in _paths(folder) if not _hidden(folder, path)}
    check_links(str(folder), folder, [*digests])
    for path, sha256 in digests.items():
        if sha256 and checksum(path) != sha256:
            raise ValueError(
                f"{path} is damaged: its checksum is not the one in {LISTING}; {REMEDY}"
            )
    return [
        HubFile(path=path.relative_to(folder).as_posix(), content=path)
        for path in digests
        if path.is_file()
    ]


def left_out(folder: str | Path, files: Sequence[HubFile]) -> list[str]:
    """Returns the paths of an export that are not uploaded, as no export wrote them.

    Args:
        folder: The folder.
        files: What is uploaded of it; of a run or a student, nothing counts as left out.
    """
    folder = Path(folder)
    if _student_folder(folder) is not None:
        return []
    taken = {file.path for file in files}
    paths = [path for path in _paths(folder) if path.is_symlink() or not path.is_dir()]
    return [p for path in paths if (p := path.relative_to(folder).as_posix()) not in taken]


def push(files: Sequence[HubFile], repository: str, *, private: bool = False) -> str:
    """Uploads files in one commit, to a repository that is created if there is none.

    The token is that of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        files: The files.
        repository: The name on the hub, ``user/name``.
        private: Whether a repository that is created is private.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the name is not accepted.
        OSError: If the hub cannot be reached, or does not accept the files.
    """
    require("diffusers", "huggingface_hub")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repository)
    api = HfApi(library_name="pdmd")
    api.create_repo(repository, private=private, exist_ok=True)
    done = api.create_commit(
        repository,
        operations=[
            CommitOperationAdd(file.path, _whole(file.content))  # of links, what they lead to
            for file in files
        ],
        commit_message="Upload with pdmd push",
    )
    return str(done.commit_url)


def student_card(
    content: Mapping[str, Any],
    plan: PhasePlan,
    repository: str,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    pictures: Sequence[str] = (),
    report: bool = False,
) -> str:
    """Returns the model card of a student, in Markdown with a YAML header.

    Args:
        content: Its ``student.json``.
        plan: Its plan.
        repository: The name on the hub.
        rows: The rows of ``metrics.json``.
        pictures: Paths of samples in the repository.
        report: Whether ``report.html`` is in it.
    """
    require("diffusers", "huggingface_hub")
    from huggingface_hub import ModelCardData

    source = content["source"] or {}
    base = source.get("arguments", {}).get("folder")
    on_hub = isinstance(base, str) and is_hub_name(base) and not Path(base).exists()
    data = ModelCardData(
        library_name="pdmd",
        license="other",
        base_model=base if on_hub else None,
        tags=["distillation", "phased-dmd"],
    )
    named = source.get("teacher")
    scales = source.get("guidance", 1.0)  # one number, or one per network
    scales = scales if isinstance(scales, list) else [scales]
    guidance = ", ".join(f"{g:g}" for g in scales) if any(g != 1 for g in scales) else ""
    teacher = "a teacher that has no registered name"
    if named:
        teacher = f"`{named}`" if re.fullmatch(r"[\w.:-]+", str(named)) else escaped(str(named))
    known = named is not None and (base is None or on_hub)
    more = "" if known else ", teacher=teacher"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repository.split('/')[-1]}",
        f"A student of {teacher}{f' (guidance {guidance})' if guidance else ''}, distilled "
        f"by Phased DMD ([arXiv:2510.27684](https://arxiv.org/abs/2510.27684)) into {len(plan)} "
        f"expert{'s' * (len(plan) > 1)}, {plan.nfe} network evaluations per sample."
        + (" Guidance is distilled into it: sample without." if guidance else ""),
        "## Load",
        "```python\nimport pdmd\n\n"
        f'student = pdmd.Student.from_pretrained("{repository}"{more})\n'
        "x_0 = pdmd.sample(student, student.encode(prompts))\n```",
        *(() if known else (TEACHER,)),
        "It does not load in stock diffusers: its files are pdmd's. `pdmd export` writes those of "
        "diffusers for families that have a pipeline there; its card says whether it needs "
        "`trust_remote_code`.",
        "## Plan",
        _markdown(plan.table().heading, plan.table().rows),
    ]
    if rows:
        cells = [[_cell(value) for value in row.values()] for row in rows]
        parts += ["## Quality", _markdown([escaped(str(key)) for key in rows[0]], cells)]
    if pictures:
        parts += ["## Samples", *(f"![{escaped(Path(p).stem)}]({quote(p)})" for p in pictures)]
    if report:
        parts.append("The whole report of the run is `report.html`.")
    parts.append("## Licence\n\nThe terms of the teacher apply to these weights too.")
    return "\n\n".join(parts) + "\n"


def _student_folder(folder: Path) -> Path | None:
    """Returns the folder of the student of a run or a student's folder, if it is one."""
    student = folder if (folder / "student.json").is_file() else folder / "student"
    return student if (student / "student.json").is_file() else None


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _hidden(folder: Path, path: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") or part == "__pycache__" for part in parts)


def _listed(folder: Path) -> dict[Path, str]:
    """Returns the files that an export lists with their digests, and its card, without one."""
    with naming(folder / LISTING, REMEDY):
        content = read_json(folder / LISTING)
        _check_own_digest(content)
        known = content.get("digests", {})
        digests = {str(name): str(known.get(name, "")) for name in content["files"]}
    digests[CARD] = ""  # cards are edited
    for name in digests:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder / LISTING} lists {name!r}, outside of it; export again")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {REMEDY}")
    return {folder / name: digests[name] for name in sorted(digests)}


def _check_own_digest(content: Mapping[str, Any]) -> None:
    body = {key: value for key, value in content.items() if key != "sha256"}
    if content.get("sha256", own_digest(body)) != own_digest(body):
        raise ValueError("it was changed after it was written")


def _student_files(student: Path, repository: str) -> list[HubFile]:
    content = read_description(student)
    plan = plan_from_description(content["plan"])
    names = ["student.json", *dict.fromkeys(Path(e["file"]).name for e in content["experts"])]
    for name in names:
        if not (student / name).is_file():
            raise ValueError(f"{student / name} is missing; distill again or restore the file")
    files = [HubFile(path=name, content=student / name) for name in names]
    run = student.parent if student.name == "student" else student
    beside = [run / name for name in BESIDE if (run / name).is_file()]
    files += [HubFile(path=path.name, content=path) for path in beside]
    grids = [path for pattern in PICTURES for path in sorted((run / "grids").glob(pattern))]
    files += [HubFile(path=f"samples/{path.name}", content=path) for path in grids]
    check_links(str(run), run, [file.content for file in files if isinstance(file.content, Path)])
    with naming(student / "student.json", "distill again or restore the file"):
        _check_own_digest(content)
    digests = {student / Path(e["file"]).name: e["sha256"] for e in content["experts"]}
    for path, sha256 in digests.items():
        if checksum(path) != sha256:
            raise ValueError(
                f"{path} is damaged: its checksum is not the one in student.json; distill again "
                "or restore the file"
            )
    metrics = read_json(run / "metrics.json") if run / "metrics.json" in beside else {}
    card = student_card(
        content,
        plan,
        repository,
        rows=metrics.get("rows", []),
        pictures=[f"samples/{path.name}" for path in grids[:2]],
        report=run / "report.html" in beside,
    )
    return [HubFile(path="README.md", content=card.encode()), *files]


def _whole(content: bytes | Path) -> bytes | str:
    return content if isinstance(content, bytes) else str(content.resolve())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return escaped(value if isinstance(value, str) else json.dumps(value))


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
