"""Existing clients, unmodified, each in a process of its own.

They live in an environment of their own (``make test-clients`` makes it): their protobuf is
older than ours, and two copies of the protocol's messages cannot share a process.
"""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER
from tests.support.serving import serving

_ROOT = Path(__file__).parents[2]
_PYTHON = _ROOT / ".cache" / "clients-venv" / "bin" / "python"
_SCRIPTS = Path(__file__).parent


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    bundles = [DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS]
    with serving(tmp_path_factory.mktemp("clients"), bundles, "--threads", "1") as running:
        yield running


@pytest.fixture
def run(server):
    """Run a script of this folder and return what it printed as JSON."""

    def run(name):
        command = [_PYTHON, "-W", "ignore", _SCRIPTS / name, server.address, server.http]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
