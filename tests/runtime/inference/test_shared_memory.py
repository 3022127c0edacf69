import http.client
import os
import secrets
import socket
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from outpost_runtime.address import host_of_peer, is_loopback
from outpost_runtime.errors import InvalidInputError, NotFoundError, UnsupportedError
from outpost_runtime.server.inference.message import Placement
from outpost_runtime.server.inference.shared_memory import NoRegions, Regions

from tests.support.fixtures import CLASSIFIER
from tests.support.serving import serving

_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies


@pytest.fixture
def key():
    key = f"outpost-test-{secrets.token_hex(4)}"
    (_FOLDER / key).write_bytes(bytes(range(64)))
    yield key
    (_FOLDER / key).unlink()


@pytest.fixture
def regions():
    regions = Regions()
    yield regions
    regions.close()


def _place(offset, size, region="r"):
    return Placement(region=region, offset=offset, byte_size=size)


def test_what_a_client_wrote_is_read_and_what_is_written_the_client_reads(regions, key):
    regions.register("r", f"/{key}", 16, 32)
    assert regions.read(_place(2, 3)) == bytes([18, 19, 20])
    regions.write(_place(0, 8), b"abc")
    assert (_FOLDER / key).read_bytes()[16:20] == b"abc\x13"


def test_regions_are_listed_and_forgotten(regions, key):
    regions.register("r", key, 0, 64)
    regions.register("s", key, 0, 8)
    assert [region.name for region in regions.status("")] == ["r", "s"]
    regions.unregister("r")
    regions.unregister("nobody")
    with pytest.raises(NotFoundError):
        regions.read(_place(0, 1))
    regions.unregister("")
    assert regions.status("") == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"key": "nothing-here"}, NotFoundError),
        ({"key": "../etc/passwd"}, InvalidInputError),
        ({"key": ".."}, InvalidInputError),
        ({"key": ""}, InvalidInputError),
        ({"byte_size": 65}, InvalidInputError),
        ({"offset": 60, "byte_size": 5}, InvalidInputError),
        ({"byte_size": 0}, InvalidInputError),
        ({"name": ""}, InvalidInputError),
        ({"name": "r" * 257}, InvalidInputError),
        ({"offset": -5}, InvalidInputError),
        ({"byte_size": -5}, InvalidInputError),
    ],
)
def test_what_is_no_region_is_refused(regions, key, change, error):
    with pytest.raises(error):
        regions.register(**({"name": "r", "key": key, "offset": 0, "byte_size": 8} | change))
    assert regions.status("") == []


def test_a_link_out_of_shared_memory_is_not_followed(regions, key):
    link = _FOLDER / f"{key}-link"
    link.symlink_to("/etc/hostname")
    try:
        with pytest.raises(NotFoundError):
            regions.register("r", link.name, 0, 1)
    finally:
        link.unlink()


def test_a_name_can_be_taken_once(regions, key):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError, match="already"):
        regions.register("r", key, 0, 64)


@pytest.mark.parametrize(("offset", "size"), [(60, 5), (64, 1), (0, 65), (0, 1 << 40)])
def test_nothing_is_read_or_written_outside_of_a_region(regions, key, offset, size):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError):
        regions.read(_place(offset, size))
    with pytest.raises(InvalidInputError):
        regions.write(_place(offset, size), b"x")


def test_more_than_the_place_holds_is_not_written(regions, key):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError, match="has 2"):
        regions.write(_place(0, 2), b"abc")


def test_a_client_that_shrinks_its_memory_does_not_end_the_server(regions, key):
    regions.register("r", key, 0, 64)
    os.truncate(_FOLDER / key, 4)
    with pytest.raises(InvalidInputError, match="become smaller"):
        regions.read(_place(0, 8))


def test_no_descriptor_is_left_behind(regions, key):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        regions.register("r", key, 0, 64)
        regions.unregister("r")
        with pytest.raises(InvalidInputError):
            regions.register("r", key, 0, 99)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("peer", "host", "is_here"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1", True),
        ("ipv6:%5B::1%5D:5000", "::1", True),
        ("ipv6:[::ffff:127.0.0.1]:5000", "::ffff:127.0.0.1", True),
        ("ipv6:[::ffff:10.0.0.1]:5000", "::ffff:10.0.0.1", False),
        ("ipv4:10.0.0.1:5000", "10.0.0.1", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::1%eth0", False),
        ("unix:/run/outpost/grpc.sock", "localhost", True),
        ("unix:", "localhost", True),
        ("", "", False),
    ],
)
def test_a_client_of_this_machine_is_told_from_others(peer, host, is_here):
    assert host_of_peer(peer) == host
    assert is_loopback(host) is is_here


def test_a_client_elsewhere_has_no_regions_and_sees_nobody_s(key):
    regions = NoRegions()
    for ask in (
        lambda: regions.register("r", key, 0, 64),
        lambda: regions.unregister(""),
        lambda: regions.status(""),
        lambda: regions.read(_place(0, 1)),
        lambda: regions.write(_place(0, 1), b"a"),
        lambda: regions.check(_place(0, 1)),
    ):
        with pytest.raises(UnsupportedError, match="server's own machine"):
            ask()


def test_both_protocols_refuse_shared_memory_to_clients_that_come_over_the_network(tmp_path, key):
    host = _address_of_this_machine()
    options = ("--address", "0.0.0.0:0", "--http-address", "0.0.0.0:0")
    with serving(tmp_path, [CLASSIFIER], *options, "--allow-remote-unauthenticated") as server:
        port, http_port = (place.rpartition(":")[2] for place in (server.address, server.http))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as here:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(here)
            stub.SystemSharedMemoryRegister(
                pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=64)
            )
        with grpc.insecure_channel(f"{host}:{port}") as there:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(there)
            for call, request in _uses_of_memory(stub):
                with pytest.raises(grpc.RpcError, match="server's own machine"):
                    call(request)
            assert stub.ModelReady(pb.ModelReadyRequest(name="tiny-classifier")).ready
        for path in ("region/r/status", "unregister"):
            with closing(http.client.HTTPConnection(f"{host}:{http_port}", timeout=30)) as asked:
                method = "GET" if "status" in path else "POST"
                asked.request(method, f"/v2/systemsharedmemory/{path}")
                assert asked.getresponse().status == 501


def _address_of_this_machine():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return asked.getsockname()[0]


def _uses_of_memory(stub):
    yield stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest()
    yield stub.SystemSharedMemoryUnregister, pb.SystemSharedMemoryUnregisterRequest()
    for kind in ("inputs", "outputs"):
        request = pb.ModelInferRequest(model_name="tiny-classifier")
        tensor = getattr(request, kind).add(name="input_ids")
        if kind == "inputs":
            tensor.datatype = "INT64"
            tensor.shape.extend([1, 1])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
        yield stub.ModelInfer, request
