"""The pages say what their sources hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_evidence_page_is_what_its_results_say():
    done = subprocess.run(
        [sys.executable, "docs/evidence/make.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
