"""Real models, opened from encrypted blocks: what that takes, beside a plain folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime.bundle import read_bundle

from examples import bundles
from tests.support import memory_of_opening
from tests.support.sealed_run import ship

pytestmark = pytest.mark.real_model

_WAYS = [("all-minilm-l6-v2", "cpu-fp32"), ("gemma-3-270m", "cpu-int8")]


@pytest.fixture(scope="module", params=_WAYS, ids=lambda way: way[0])
def measured(request, tmp_path_factory):
    folder = bundles.path_of(*request.param)
    scratch = tmp_path_factory.mktemp("sealed")
    bundle = read_bundle(folder)
    ship(bundle, scratch, block_bytes=1 << 20)
    files = bundle.manifest.files
    size = files["model.onnx"].size + files["model.onnx.data"].size
    figures = {
        (what, way): _measure(what, f"--{way}", folder if way == "folder" else scratch)
        for what in ("session", "model")
        for way in ("folder", "sealed")
    }
    return request.param[0], size, figures


def _measure(what: str, *options: object) -> dict[str, float]:
    command = [sys.executable, "-m", memory_of_opening.__name__, what, *map(str, options)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout)


def test_the_peak_of_a_sealed_model_is_bounded(measured, capsys):
    name, size, figures = measured
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {size / 2**20:.0f} MiB of graph and weights\n")
        for (what, way), figure in figures.items():
            sys.stdout.write(
                f"  {what:8} {way:7} peak {figure['peak'] / 2**20:6.1f} MiB "
                f"({figure['peak'] / size:.2f} x), afterwards {figure['after'] / 2**20:6.1f} MiB, "
                f"{figure['seconds']:.2f} s\n"
            )
    sealed, plain = figures["session", "sealed"], figures["session", "folder"]
    assert sealed["peak"] <= max(1.3 * size, 1.1 * plain["peak"])
