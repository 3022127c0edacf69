"""Who serves tensors: Outpost, MLServer and Triton, each a process that answers on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from outpost_runtime.store import Store

from bench import peers
from bench.server import serving
from bench.tensor_material import Model
from bench.workers import ROOT, peak_megabytes

OURS = "Outpost"
"""What the peers are compared with."""

MAX_BATCH = 32
"""Rows that a peer may run at once; as many as there are callers at most."""

_START_SECONDS = 120
_POLL_SECONDS = 0.2
_LOCAL = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A server with settings.

    Attributes:
        serve: Starts it in an empty folder, with these models.
        only_one_length: Whether it fails when waiting requests differ in shape.
    """

    name: str
    serve: Callable[[Path, Sequence[Model]], "AbstractContextManager[Running]"]
    only_one_length: bool = False

    def models(self, models: Sequence[Model]) -> list[Model]:
        """Return what it can serve."""
        return [model for model in models if not (self.only_one_length and model.mixed_lengths)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A server that answers for all of its models."""

    address: str
    process_id: int

    def peak_megabytes(self) -> float:
        """Return the most memory that its processes had resident, added up."""
        return sum(peak_megabytes(process_id) for process_id in _family(self.process_id))


def contestants() -> list[Contestant]:
    """Return everybody, with all that they need made."""
    peers.mlserver_python()
    peers.triton_backends()
    return [
        Contestant(name=OURS, serve=_outpost),
        Contestant(name="MLServer", serve=_mlserver_plain),
        Contestant(
            name="MLServer, adaptive batching", serve=_mlserver_batching, only_one_length=True
        ),
        Contestant(name="Triton", serve=_triton_plain),
        Contestant(name="Triton, dynamic batching", serve=_triton_batching),
    ]


@contextmanager
def _outpost(folder: Path, models: Sequence[Model]) -> Iterator[Running]:
    store = folder / "store"
    for model in models:
        Store(store).add(model.folder)
    with serving(store) as server:
        yield Running(address=server.address, process_id=server.process_id)


def _mlserver_plain(folder: Path, models: Sequence[Model]) -> AbstractContextManager[Running]:
    return _mlserver(folder, models, {})


def _mlserver_batching(folder: Path, models: Sequence[Model]) -> AbstractContextManager[Running]:
    return _mlserver(folder, models, {"max_batch_size": MAX_BATCH, "max_batch_time": 0.001})


@contextmanager
def _mlserver(
    folder: Path, models: Sequence[Model], batching: dict[str, object]
) -> Iterator[Running]:
    ports = _free_ports("http_port", "grpc_port")
    settings = {"host": _LOCAL, "parallel_workers": 0, "metrics_endpoint": None, "debug": False}
    _write_json(folder / "settings.json", settings | ports)
    for model in models:
        (folder / model.name).mkdir()
        _write_json(
            folder / model.name / "model-settings.json",
            {
                "name": model.name,
                "implementation": "bench.mlserver_runtime.OnnxModel",
                "parameters": {"uri": str(model.graph), "extra": {"threads": model.threads}},
            }
            | batching,
        )
    command = [peers.mlserver_python().with_name("mlserver"), "start", folder]
    address = f"{_LOCAL}:{ports['grpc_port']}"
    with _started(command, {"PYTHONPATH": str(ROOT)}, address, folder, models) as running:
        yield running


def _triton_plain(folder: Path, models: Sequence[Model]) -> AbstractContextManager[Running]:
    return _triton(folder, models, "")


def _triton_batching(folder: Path, models: Sequence[Model]) -> AbstractContextManager[Running]:
    return _triton(folder, models, "dynamic_batching { }\n")


@contextmanager
def _triton(folder: Path, models: Sequence[Model], batching: str) -> Iterator[Running]:
    ports = _free_ports("grpc-port", "http-port")
    for model in models:
        version = folder / "models" / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(ROOT / "bench" / "triton_model.py", version / "model.py")
        (version.parent / "config.pbtxt").write_text(_triton_config(model) + batching, "utf-8")
    server, variables = peers.triton_server()
    command: list[object] = [server, f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={peers.triton_backends()}", "--allow-metrics=false"]
    command += [f"--{kind}-address={_LOCAL}" for kind in ("grpc", "http")]
    command += [f"--{name}={port}" for name, port in ports.items()]
    address = f"{_LOCAL}:{ports['grpc-port']}"
    with _started(command, variables, address, folder, models) as running:
        yield running


def _triton_config(model: Model) -> str:
    shapes = {spec.name: (spec.datatype, spec.shape[1:]) for spec in model.outputs}
    lines = ['backend: "python"', f"max_batch_size: {MAX_BATCH}"]
    lines += [
        f'input {{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }}'
        for name in model.inputs
    ]
    lines += [
        f'output {{ name: "{name}" data_type: TYPE_{datatype} dims: {list(shape)} }}'
        for name, (datatype, shape) in shapes.items()
    ]
    given = {"graph": model.graph, "threads": model.threads}
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in given.items()
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def _started(
    command: Sequence[object],
    variables: dict[str, str],
    address: str,
    folder: Path,
    models: Sequence[Model],
) -> Iterator[Running]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=os.environ | variables, stdout=log, stderr=log
        )
    try:
        _wait_until_ready(process, address, folder, models)
        yield Running(address=address, process_id=process.pid)
    finally:
        process.terminate()
        process.wait(_START_SECONDS)


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", address: str, folder: Path, models: Sequence[Model]
) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if all(_is_ready(address, model.name) for model in models):
            return
        time.sleep(_POLL_SECONDS)
    log = (folder / "log").read_text("utf-8")
    sys.exit(f"{log}\nThis server did not start: {process.args!r}")


def _is_ready(address: str, model: str) -> bool:
    request = pb.ModelReadyRequest(name=model)
    with grpc.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return bool(stub.ModelReady(request, timeout=_START_SECONDS).ready)
        except grpc.RpcError:
            return False


def _family(process_id: int) -> Iterator[int]:
    yield process_id
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            yield from _family(int(child))


def _free_ports(*names: str) -> dict[str, int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.create_server((_LOCAL, 0)) for _ in names]
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), "utf-8")
