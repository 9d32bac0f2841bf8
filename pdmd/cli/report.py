"""The command `pdmd report`."""

from __future__ import annotations

from pdmd.cli.arguments import no_more, take_name
from pdmd.files import local_path

__all__ = ["report_command"]


def report_command(words: list[str]) -> int:
    """Writes the HTML report of a run folder or a results file.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.benchmarks import read_results
    from pdmd.cli.config_files import read_config
    from pdmd.documents import read_toml
    from pdmd.evaluation.bench_report import write_bench_report
    from pdmd.evaluation.report import write_report

    name, rest = take_name(words, "a run folder, for example runs/digits, or a results file")
    no_more([word for word in rest if word not in ("-h", "--help")])
    if not name:
        print(
            "usage: pdmd report PATH\n\nWrites report.html of a run folder, or the HTML report of "
            "a results file of 'pdmd bench'."
        )
        return 0
    path = local_path(name, "a report")
    if path.suffix == ".json":
        print(write_bench_report(read_results(path), path.with_suffix(".html")))
        return 0
    if not (path / "config.toml").is_file():
        raise ValueError(f"{name} is neither a run folder nor a results file (.json)")
    read_config(read_toml(path / "config.toml")[1])  # for its errors
    print(write_report(path))
    return 0
