"""Real models, opened from encrypted blocks: what that takes, beside the same from a plain folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.update.release import encode_release

from examples import bundles
from tests.support import memory_of_opening
from tests.support.sealed import Blocks, FolderBlocks, released

pytestmark = pytest.mark.real_model

_WAYS = [("all-minilm-l6-v2", "cpu-fp32"), ("gemma-3-270m", "cpu-int8")]


@pytest.fixture(scope="module", params=_WAYS, ids=lambda way: way[0])
def measured(request, tmp_path_factory):
    folder = bundles.path_of(*request.param)
    scratch = tmp_path_factory.mktemp("sealed")
    bundle, blocks = read_bundle(folder), Blocks()
    release = released(bundle, blocks, block_bytes=1 << 20)
    (scratch / memory_of_opening.RELEASE).write_bytes(encode_release(release))
    FolderBlocks(scratch / memory_of_opening.BLOCKS).keep(blocks)
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
        print(f"\n{name}: {size / 2**20:.0f} MiB of graph and weights")
        for (what, way), figure in figures.items():
            print(
                f"  {what:8} {way:7} peak {figure['peak'] / 2**20:6.1f} MiB "
                f"({figure['peak'] / size:.2f} x), afterwards {figure['after'] / 2**20:6.1f} MiB, "
                f"{figure['seconds']:.2f} s"
            )
    sealed, plain = figures["session", "sealed"], figures["session", "folder"]
    assert sealed["peak"] <= max(1.3 * size, 1.1 * plain["peak"])
