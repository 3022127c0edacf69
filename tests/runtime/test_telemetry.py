"""Nothing leaves a box that nobody sent: the library that runs models reports to nobody."""

import os
import subprocess
import sys

import pytest

from tests.support.fixtures import CLASSIFIER

_OPEN = """
from pathlib import Path
from outpost_runtime.sessions.ort import OrtSession
OrtSession(Path(r"{model}"), threads=1).close()
"""


@pytest.mark.parametrize("said", [None, "0"])
def test_opening_a_model_leaves_no_identifier_and_no_report(tmp_path, said):
    environment = {n: v for n, v in os.environ.items() if n not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if said is not None:  # whoever starts a server cannot switch it on by accident either
        environment["ORT_DISABLE_TELEMETRY"] = said
    code = _OPEN.format(model=CLASSIFIER / "model.onnx")
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert list(tmp_path.rglob("*")) == []
