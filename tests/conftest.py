"""A leg that skipped everything fails: nothing was tested, and green would say otherwise."""

import os
from pathlib import Path

import hypothesis
import pytest

from tests.support.fault_matrix import FaultMatrix

# The same examples every time: a red build must be somebody's doing.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# Before any library looks: a test that reaches for a hub fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-matrix", type=Path, help="write what incidents have shown to a file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--fault-matrix")
    if path is not None:
        config.pluginmanager.register(FaultMatrix(path))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of xdist
        return
    skipped, passed = (len(reporter.stats.get(key, [])) for key in ("skipped", "passed"))
    if skipped and not passed:
        reporter.write_line("every test was skipped: nothing was tested", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
