import pytest

from tests.helpers.tiny_runs import distill


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run, not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert distill(folder) == 0
    return folder
