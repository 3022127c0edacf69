"""The container image: its size, and that it serves as it is, without any engine."""

import json
import subprocess
import tarfile
import time
from types import SimpleNamespace

import pytest
from outpost_runtime.client import Client

from tests.image.conftest import ask
from tests.support.fixtures import DECODER
from tests.support.metal.machine import free_port
from tests.support.metal.tools import container

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

_MOST_BYTES = 400_000_000
_STORE = "/var/lib/outpost/store"


@pytest.fixture(scope="module")
def layout():
    return container()


def _blob(layout, descriptor):
    return layout / "blobs" / descriptor["digest"].replace(":", "/")


def _manifest(layout):
    index = json.loads((layout / "index.json").read_text())
    return json.loads(_blob(layout, index["manifests"][0]).read_text())


@pytest.fixture(scope="module")
def root(layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("container")
    for layer in _manifest(layout)["layers"]:
        with tarfile.open(_blob(layout, layer)) as archive:
            archive.extractall(folder, filter="fully_trusted")  # noqa: S202 - our own build
    return folder


def test_it_is_small_packed_and_unpacked(layout, root, show):
    packed = sum(layer["size"] for layer in _manifest(layout)["layers"])
    unpacked = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
    show("packed, bytes", packed)
    show("unpacked, bytes", unpacked)
    assert packed <= unpacked <= _MOST_BYTES


def test_it_has_nothing_of_a_box(root):
    for path in ("usr/lib/modules", "usr/lib/systemd", "boot/vmlinuz", "usr/bin/pip3", "etc/fstab"):
        assert not (root / path).exists()


def test_it_takes_a_model_and_answers(layout, root, tmp_path):
    config = json.loads(_blob(layout, _manifest(layout)["config"]).read_text())["config"]
    init, *usual = config["Cmd"]
    assert (init, usual[0]) == ("/sbin/init", "serve")
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o777)  # as a volume that user 1000 may write
    start = ["bwrap", "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc"]
    start += ["--tmpfs", "/tmp", "--unshare-pid"]  # noqa: S108 - all of it ends together
    start += ["--bind", store, _STORE, "--ro-bind", DECODER, "/mnt", "--die-with-parent", init]
    subprocess.run([*start, "add", "/mnt", "--store", _STORE], check=True)
    port, http = free_port(), free_port()
    address = ["--address", f"127.0.0.1:{port}", "--http-address", f"127.0.0.1:{http}"]
    with subprocess.Popen([*start, "serve", "--store", _STORE, *address]) as server:
        try:
            until = time.monotonic() + 60
            with Client(f"127.0.0.1:{port}") as client:
                while not client.is_serving() and time.monotonic() < until:
                    time.sleep(0.2)
            assert ask(SimpleNamespace(grpc=port))[0]
        finally:
            server.terminate()
