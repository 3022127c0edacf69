"""The fault matrix: what the tests marked as incidents have shown, as a page.

A test says ``@pytest.mark.incident("power cut", where="between two writes of slots")``; with
``--fault-matrix=FILE`` the results of those that ran become the page. ``make fault-matrix``.
"""

from collections import defaultdict
from pathlib import Path

import pytest

_HEAD = """# Fault matrix

Written by `make fault-matrix` from the tests that ran; every row is a test that provokes the
incident for real and looks at what is left behind. A number counts the places or examples at
which it was provoked.

| incident | where it was injected | result | test |
| --- | --- | --- | --- |
"""


class FaultMatrix:
    """A pytest plugin that collects the outcomes of tests marked ``incident``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[str, tuple[str, str]] = {}
        self._outcomes: dict[str, list[str]] = defaultdict(list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("incident")
            if mark is not None:
                self._marks[item.nodeid] = (str(mark.args[0]), str(mark.kwargs["where"]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._marks and (report.when == "call" or report.outcome != "passed"):
            self._outcomes[report.nodeid].append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for node, outcomes in self._outcomes.items():
            test = node.partition("[")[0].rpartition("::")[2]
            rows[*self._marks[node], test].append("failed" if "failed" in outcomes else outcomes[0])
        lines = [
            f"| {incident} | {where} | {_result(outcomes)} | {_sentence(test)} |"
            for (incident, where, test), outcomes in sorted(rows.items())
        ]
        self._path.write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _result(outcomes: list[str]) -> str:
    worst = next((word for word in ("failed", "skipped") if word in outcomes), "survived")
    count = f" ({len(outcomes)})" if len(outcomes) > 1 else ""
    return worst + count


def _sentence(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")
