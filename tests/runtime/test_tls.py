"""Doors with TLS: who may come in, whom a client believes, and what of it is kept on the disk."""

import http.client
import re
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.certificate import CERTIFICATE, make_certificate, name_of, tls_key
from outpost_runtime.update.device_keys import SecretKeyStore, provision_keys

from tests.support import certificates
from tests.support.fixtures import DECODER
from tests.support.fleet import Fleet
from tests.support.serving import serving, serving_store

_ID = "0123456789abcdef" * 4
_NAME = "outpost-0123456789abcdef"
_KEY = "b657fe2757a761a946454abea8709b6fa9e63e0080fe40be8db927fd6c69e5fa"
_ANY = "127.0.0.1:0"
_DOORS = ("--tls-address", _ANY, "--tls-http-address", _ANY, "--threads", "1")


class _Pair:
    """A certificate and its key, in files."""

    def __init__(self, folder, *names):
        own = provision_keys(folder / "keys")
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.certificate.write_bytes(make_certificate(own, _ID, names))
        self.key.write_bytes(tls_key(own))
        self.options = ("--tls-certificate", self.certificate, "--tls-key", self.key)


class _Doors:
    """Where a server listens with TLS, as its log says."""

    def __init__(self, running):
        log = running.log.read_text()
        self.grpc = re.search(r"TLS for gRPC on (\S+)", log).group(1)
        self.http = re.search(r"TLS for HTTP on https://(\S+)", log).group(1)
        self.running = running


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return _Pair(tmp_path_factory.mktemp("server"), "127.0.0.1")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return certificates.issue(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, pair):
    folder = tmp_path_factory.mktemp("tls")
    with serving(folder, [DECODER], *_DOORS, *map(str, pair.options)) as running:
        yield _Doors(running)


@pytest.fixture(scope="module")
def asking(tmp_path_factory, pair, client):
    """A server that asks its clients who they are."""
    options = (*_DOORS, *map(str, pair.options), "--tls-client-ca", str(client.certificate))
    with serving(tmp_path_factory.mktemp("asking"), [DECODER], *options) as running:
        yield _Doors(running)


def _outpost(*arguments):
    command = [sys.executable, "-m", "outpost_runtime.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def _generate(address, *options):
    words = ("generate", "tiny-decoder", "Hi", "--max-new-tokens", 2)
    return _outpost(*words, "--address", address, *options)


def _serve(store, *options):
    return _outpost("serve", "--store", store, "--address", _ANY, "--http-address", _ANY, *options)


def _get(address, certificate, path="/v2/health/live", pair=None, **headers):
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    with closing(http.client.HTTPSConnection(address, timeout=30, context=context)) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def test_both_protocols_answer_with_tls_and_beside_it_without(server, pair):
    assert _generate(server.grpc, "--tls-ca", pair.certificate).returncode == 0
    assert _generate(server.running.address).returncode == 0
    assert _get(server.http, pair.certificate) == 200
    with closing(http.client.HTTPConnection(server.running.http, timeout=30)) as plain:
        plain.request("GET", "/v2/health/live")
        assert plain.getresponse().status == 200


def test_a_server_is_known_by_another_name_of_its_certificate(server, pair):
    options = ("--tls-ca", pair.certificate, "--tls-name")
    assert _generate(server.grpc, *options, _NAME).returncode == 0
    other = _generate(server.grpc, *options, "another")
    assert other.returncode == 1
    assert "is not the server that was named" in other.stderr


def test_a_server_with_another_certificate_is_not_believed(server, client):
    done = _generate(server.grpc, "--tls-ca", client.certificate)
    assert done.returncode == 1
    assert "Compare --tls-ca" in done.stderr
    with pytest.raises(ssl.SSLCertVerificationError):
        _get(server.http, client.certificate)


def test_mixing_tls_and_none_is_told(server, pair):
    assert "hangs up" in _generate(server.grpc).stderr
    assert "speaks no TLS" in _generate(server.running.address, "--tls-ca", pair.certificate).stderr


def test_pages_of_another_origin_are_refused_those_without_tls_too(server, pair):
    assert _get(server.http, pair.certificate, Host="box.example") == 200  # it was asked by name
    assert _get(server.http, pair.certificate, Origin=f"https://{server.http}") == 200
    for origin in (f"http://{server.http}", "https://elsewhere.example", "null"):
        assert _get(server.http, pair.certificate, Origin=origin) == 403


def test_clients_that_are_asked_show_a_certificate_or_do_not_come_in(asking, pair, client):
    options = ("--tls-ca", pair.certificate)
    shown = ("--tls-certificate", client.certificate, "--tls-key", client.key)
    assert _generate(asking.grpc, *options, *shown).returncode == 0
    assert "--tls-certificate" in _generate(asking.grpc, *options).stderr
    strangers = ("--tls-certificate", pair.certificate, "--tls-key", pair.key)
    assert _generate(asking.grpc, *options, *strangers).returncode == 1
    assert _get(asking.http, pair.certificate, pair=client) == 200
    for stranger in (None, pair):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            _get(asking.http, pair.certificate, pair=stranger)


def test_a_client_of_an_authority_comes_in_and_what_a_client_has_signed_does_not(
    tmp_path, pair, client
):
    """By both doors; the authority is as plain OpenSSL makes it, without a word on its use."""
    authority = certificates.issue(tmp_path / "authority", authority=True)
    member = certificates.issue(tmp_path / "member", by=authority)
    minted = certificates.issue(tmp_path / "minted", by=member)
    known = tmp_path / "clients.pem"
    text = (
        "# Köln\n".encode() + authority.certificate.read_bytes() + client.certificate.read_bytes()
    )
    known.write_bytes(text)
    options = (*_DOORS, *map(str, pair.options), "--tls-client-ca", str(known))
    with serving(tmp_path, [DECODER], *options) as running:
        doors = _Doors(running)
        for who, comes_in in ((member, True), (client, True), (minted, False)):
            shown = ("--tls-certificate", who.certificate, "--tls-key", who.key)
            done = _generate(doors.grpc, "--tls-ca", pair.certificate, *shown)
            assert (done.returncode == 0) is comes_in
            try:
                assert _get(doors.http, pair.certificate, pair=who) == 200
            except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
                assert not comes_in
            else:
                assert comes_in


def test_a_box_s_certificate_vouches_for_no_other(tmp_path, pair):
    """Whoever has one box's secret is not believed as another by those who trust both."""
    forged = certificates.issue(tmp_path / "forged", by=pair)
    options = ("--tls-certificate", forged.certificate, "--tls-key", forged.key)
    with serving(tmp_path, [DECODER], *_DOORS, *map(str, options)) as running:
        doors = _Doors(running)
        assert _generate(doors.grpc, "--tls-ca", pair.certificate).returncode == 1
        assert _generate(doors.grpc, "--tls-ca", forged.certificate).returncode == 0
        with pytest.raises(ssl.SSLCertVerificationError):
            _get(doors.http, pair.certificate)


def test_clients_that_break_off_a_handshake_leave_no_trace_and_do_no_harm(server, pair):
    before = server.running.log.read_text()
    for address in (server.grpc, server.http):
        host, port = address.split(":")
        for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\xff" * 4096):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(data)
    time.sleep(1)
    assert _generate(server.grpc, "--tls-ca", pair.certificate, "--tls-name", "no").returncode == 1
    assert _get(server.http, pair.certificate) == 200
    assert server.running.log.read_text() == before


def test_a_provisioned_box_has_a_certificate_and_no_file_holds_its_key(tmp_path):
    store = tmp_path / "store"
    fleet = Fleet(now=int(time.time()))
    fleet.box(store, sources=(str(tmp_path / "repo"),))
    fleet.write(tmp_path / "repo")
    with serving_store(store, tmp_path / "log", *_DOORS) as running:
        certificate = store / CERTIFICATE
        doors = _Doors(running)
        names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
        names = names.get_extension_for_class(x509.SubjectAlternativeName).value
        (name,) = names.get_values_for_type(x509.DNSName)
        status = _outpost(
            *("status", "--store", store, "--address", doors.grpc),
            *("--tls-ca", certificate, "--tls-name", name),
        )
        assert "serving" in status.stdout
    assert [p for p in store.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()] == []


def test_a_box_keeps_its_tls_key_and_its_certificate_holds_at_any_time(tmp_path):
    own = provision_keys(tmp_path)
    assert tls_key(own) == tls_key(own)
    assert tls_key(own) != tls_key(provision_keys(tmp_path / "other"))
    made = x509.load_pem_x509_certificate(make_certificate(own, _ID, ["box.example", "10.0.0.7"]))
    assert made.public_key() == load_pem_private_key(tls_key(own), None).public_key()
    assert (made.not_valid_before_utc.year, made.not_valid_after_utc.year) == (1970, 9999)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name_of(_ID), "box.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_the_key_of_certificates_that_clients_have_is_made_as_ever():
    """Another one would shut every client of every box out."""
    own = SecretKeyStore(bytes(range(32)), "for a test")
    key = load_pem_private_key(tls_key(own), None)
    assert f"{key.private_numbers().private_value:064x}" == _KEY


@pytest.mark.parametrize("name", ["", "a" * 64, "a..b", "a b", "a\nb", "x\ud800", "10.0.0.7/8"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match="no host name"):
        make_certificate(provision_keys(tmp_path), _ID, [name])


def test_a_door_to_the_network_asks_for_certificates_or_for_consent(asking, client, pair):
    store = asking.running.store
    open_to_all = _serve(store, "--tls-address", "0.0.0.0:0", *pair.options)
    assert open_to_all.returncode == 1
    assert "--tls-client-ca" in open_to_all.stderr
    plain = ("--address", "0.0.0.0:0", "--tls-client-ca", client.certificate)
    assert "nobody is asked" in _serve(store, *plain, "--tls-address", _ANY, *pair.options).stderr


def test_a_network_s_door_that_asks_for_certificates_needs_no_consent(tmp_path, pair, client):
    options = (*map(str, pair.options), "--tls-client-ca", str(client.certificate))
    doors = ("--tls-address", "0.0.0.0:0", "--tls-http-address", "0.0.0.0:0")
    with serving(tmp_path, [DECODER], *doors, *options) as running:
        assert "TLS for HTTP" in running.log.read_text()


def test_keys_and_certificates_that_cannot_be_used_are_told(tmp_path, asking, pair, client):
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key(pair.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + b"\0" * 4096)
    empty = tmp_path / "empty.pem"
    empty.touch()
    odd = certificates.issue(tmp_path / "odd", key=ed25519.Ed25519PrivateKey.generate())
    large = tmp_path / "large.pem"
    large.write_bytes(b"\n" * ((1 << 20) + 1))
    for certificate, key_file, said in (
        (pair.certificate, client.key, "cannot be used"),
        (pair.certificate, locked, "cannot be used"),
        (junk, pair.key, "cannot be used"),
        (pair.certificate, tmp_path / "none.pem", "cannot be read"),
        (large, pair.key, "no PEM file"),
        (empty, pair.key, "no PEM file"),
        (odd.certificate, odd.key, "that gRPC does not take"),
    ):
        options = ("--tls-certificate", certificate, "--tls-key", key_file)
        done = _serve(asking.running.store, "--tls-address", _ANY, *options)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    done = _serve(
        asking.running.store, "--tls-address", _ANY, *pair.options, "--tls-client-ca", junk
    )
    assert "certificates to believe" in done.stderr
    for option in ("--tls-ca", "--tls-certificate"):
        said = {"--tls-ca": pair.certificate, "--tls-certificate": client.certificate}
        said |= {"--tls-key": client.key, option: empty}
        done = _generate(asking.grpc, *(word for pair in said.items() for word in pair))
        assert (done.returncode, "no PEM file" in done.stderr) == (1, True)


def test_options_that_do_not_belong_together_are_told(asking, pair):
    store = asking.running.store
    alone = ("--tls-address", _ANY, "--tls-key", pair.key)
    assert "go together" in _serve(store, *alone).stderr
    assert "has none" in _serve(store, "--tls-address", _ANY).stderr
    assert "there are none" in _serve(store, "--tls-client-ca", pair.certificate).stderr
    assert "--tls-ca" in _generate(_ANY, "--tls-name", "box").stderr
    assert "go together" in _generate(_ANY, "--tls-ca", pair.key, "--tls-key", pair.key).stderr


def test_a_box_that_has_lost_its_certificate_says_what_to_do(tmp_path):
    store = tmp_path / "store"
    fleet = Fleet(now=int(time.time()))
    fleet.box(store, sources=(str(tmp_path / "repo"),))
    (store / CERTIFICATE).unlink()
    done = _serve(store, "--tls-address", _ANY)
    assert done.returncode == 1
    assert "outpost provision" in done.stderr


def test_provisioning_again_leaves_the_certificate_unless_names_change(tmp_path):
    fleet = Fleet(now=int(time.time()))
    root = tmp_path / "root.json"
    root.write_bytes(fleet.publisher.root_bytes)
    store = tmp_path / "store"
    words = ("provision", "--store", store, "--root", root, "--repo", "http://a.example")
    assert _outpost(*words).returncode == 0
    first = (store / CERTIFICATE).read_bytes()
    again = _outpost(*words)
    assert (store / CERTIFICATE).read_bytes() == first
    assert "is a new one" not in again.stdout
    assert "is a new one" in _outpost(*words, "--host", "box.example").stdout
    second = (store / CERTIFICATE).read_bytes()
    assert second != first
    refused = _outpost(*words, "--host", "no name")
    assert (refused.returncode, "no host name" in refused.stderr) == (1, True)
    assert (store / CERTIFICATE).read_bytes() == second
