"""Real models, opened from encrypted blocks: what that takes, beside a plain folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
from outpost_runtime.text.token_table import token_rows, with_table

from examples import bundles
from tests.support import memory_of_opening
from tests.support.batches import Batch
from tests.support.sealed import sealed
from tests.support.sealed_run import ship

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1800)]

_WAYS = [
    ("all-minilm-l6-v2", "cpu-fp32"),
    ("gemma-3-270m", "cpu-int8"),
    ("gemma-3-270m-screened", "cpu-int8"),
]


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


@pytest.mark.parametrize("graph", ["model.onnx", "model-adapters.onnx"])
def test_a_sealed_language_model_gives_the_very_bits_of_the_plain_one(graph):
    folder = bundles.path_of("gemma-3-270m", "cpu-int8")
    plain, bundle = read_bundle(folder), sealed(folder, block_bytes=1 << 20)
    prompts = np.random.default_rng(5).integers(4, 1000, (2, 12))
    answers = []
    for each in (plain, bundle):
        interface = each.manifest.interface
        opened = OrtSession(graph_of(each, graph))
        session = with_table(opened, token_rows(each.contents, interface.token_table))
        support = interface.adapters
        if graph != "model.onnx":
            bank = AdapterBank(support, base=each.digest, capacity=1)
            session = AdapterSession(session, bank)
        answers.append(Batch(session, 2, length=32).answer(prompts, count=6)[1])
        session.close()
    assert np.array_equal(*answers)


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
    assert figures["session", "sealed"]["peak"] <= 1.3 * size
