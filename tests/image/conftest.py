"""Boxes for the tests that boot the image; `make image` comes first."""

import json
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from outpost.v1 import text_pb2
from outpost_runtime.client import Client, ClientTls
from outpost_runtime.update.certificate import name_of

from tests.support.certificates import make_certificate
from tests.support.fixtures import DECODER
from tests.support.metal.machine import new_machine
from tests.support.metal.publisher import Publisher
from tests.support.metal.stick import Stick
from tests.support.metal.tools import OUT

MODEL = "tiny-decoder"


@pytest.fixture
def show():
    """Say a figure; `make image-test` prints what tests that passed have said."""

    def say(what, value):
        sys.stdout.write(f"{what}: {value}\n")

    return say


@pytest.fixture(scope="session")
def built():
    image = OUT / "x86-generic" / "outpost_1.raw"
    if not image.exists():
        pytest.fail(f"{image} is missing; 'make image' builds it")
    return image


@pytest.fixture(scope="session")
def publisher(tmp_path_factory):
    return Publisher(tmp_path_factory.mktemp("publisher"), MODEL, "system")


@pytest.fixture(scope="session")
def repository(publisher):
    with publisher.web() as address:
        yield address


@pytest.fixture(scope="session")
def factory_new(built, publisher, repository, tmp_path_factory):  # noqa: ARG001 - it is booted
    """A box that was started for the first time, with a stick, until it serves a model."""
    folder = tmp_path_factory.mktemp("boxes") / "settled"
    box = new_machine(folder)
    stick = provisioning_stick(folder / "stick.img", publisher, repository)
    box.sticks = (stick.path,)
    with box:
        box.times = {"stick taken": box.wait("the stick can be removed")}
        take_home(stick, folder)
        assert (folder / "box.status.json").exists()
        publisher.publish(DECODER, MODEL)
        publisher.grant(folder / "box.identity.json")
        box.times["model served"] = box.wait(lambda: is_served(box, MODEL))
        box.answers = [ask(box)[0], ask(box, tls=_tls_of(folder))[0]]
        box.ready_over_tls = _ready_over_tls(box)
        box.first_report = box.report()
        box.power_button()
    return box


@pytest.fixture
def box(factory_new, tmp_path):
    """A copy of that box, switched off and without its stick."""
    return factory_new.copy(tmp_path / "box")


def provisioning_stick(path, publisher, repository):
    certificate, _ = make_certificate(path.parent)  # of a client, with its key.pem
    return Stick(
        path,
        {
            "provision": f"--repo\n{repository}\n--model\nterminal-934c7a\n",
            "root.json": publisher.root,
            "config/outpost.toml": "[update]\nevery_minutes = 1\nmirrors = false\n",
            "config/serve.env": "GRPC_ADDRESS=0.0.0.0:8001\nHTTP_ADDRESS=0.0.0.0:8000\n"
            "SERVE_OPTIONS=--allow-remote-unauthenticated --tls-address 0.0.0.0:8444 "
            "--tls-http-address 0.0.0.0:8443 --tls-client-ca /etc/outpost/clients.pem\n",
            "config/clients.pem": certificate,
            "config/doors.nft": "add element inet outpost doors { 8000, 8001, 8443, 8444 }\n",
        },
    )


def take_home(stick, folder):
    """Take what a box has written to its stick: ``box.identity.json`` and others."""
    for name in stick.names("boxes"):
        (folder / f"box.{name.partition('.')[2]}").write_text(stick.read(f"boxes/{name}"))


def _tls_of(folder):
    return ClientTls(
        authorities=(folder / "box.certificate.pem").read_bytes(),
        name=name_of(json.loads((folder / "box.identity.json").read_text())["id"]),
        shown=tuple((folder / name).read_bytes() for name in ("certificate.pem", "key.pem")),
    )


def _ready_over_tls(box):
    context = ssl.create_default_context(cafile=box.folder / "box.certificate.pem")
    context.load_cert_chain(box.folder / "certificate.pem", box.folder / "key.pem")
    with closing(socket.create_connection(("127.0.0.1", box.https), timeout=60)) as connection:
        name = _tls_of(box.folder).name
        with context.wrap_socket(connection, server_hostname=name) as secured:
            secured.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
            return secured.recv(15).decode()


def ask(box, model=MODEL, tls=None):
    """Let a box generate over gRPC; returns the text and the seconds to its first piece."""
    greedy = text_pb2.GenerationParameters(max_new_tokens=8, temperature=0)
    request = text_pb2.GenerateRequest(model=model, prompt="Hi", parameters=greedy)
    began = time.monotonic()
    with Client(f"127.0.0.1:{box.tls if tls else box.grpc}", tls=tls) as client:
        answers = client.generate(request)
        parts = [next(answers)]
        first = time.monotonic() - began
        parts += answers
    assert parts[-1].summary.usage.generated_tokens > 0
    return "".join(part.piece.text for part in parts), first


def ask_over_http(box, path, body=None):
    """Ask a box over HTTP; returns its answer as a document."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{box.http}{path}", data)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - this machine's
        return json.load(answer)


def version(box, model=MODEL):
    """Return which version of a model a box serves."""
    return ask_over_http(box, f"/v2/models/{model}")["versions"]


def assert_healthy(box):
    """Wait until a box answers; fails where it does not."""
    box.wait(lambda: is_served(box))
    ask(box)


def is_served(box, model=MODEL):
    """Say whether a box answers over HTTP that a model is ready."""
    url = f"http://127.0.0.1:{box.http}/v2/models/{model}/ready"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
