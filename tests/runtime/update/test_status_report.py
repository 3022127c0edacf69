import base64
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.errors import TrustError
from outpost_runtime.update.device_keys import SecretKeyStore
from outpost_runtime.update.status_report import (
    MAX_EVENTS,
    MAX_REASON,
    MAX_STATUS_BYTES,
    Event,
    Installed,
    ModelStatus,
    StatusReport,
    claimed_device,
    sign_status,
    verify_status,
)

KEYS = SecretKeyStore(bytes(range(32)), "here")
IDENTITY = KEYS.identity("terminal")
STRANGER = SecretKeyStore(bytes(32), "there")

_text = st.text(st.characters(codec="utf-8"), max_size=30)
_digests = st.text("0123456789abcdef", min_size=64, max_size=64)
_counts = st.integers(0, (1 << 53) - 1)
_installed = st.none() | st.builds(Installed, bundle=_digests, version=_text, release=_counts)
_events = st.lists(
    st.builds(
        Event,
        time=_counts,
        name=_text,
        what=_text,
        bundle=st.none() | _digests,
        reason=st.text(st.characters(codec="utf-8"), max_size=MAX_REASON),
    ),
    max_size=3,
).map(tuple)
_models = st.dictionaries(
    _text,
    st.builds(ModelStatus, active=_installed, previous=_installed, candidate=_installed),
    max_size=3,
)
_reports = st.builds(
    StatusReport,
    device=st.just(IDENTITY.id),
    model=_text,
    runtime=_text,
    keys=_text,
    made=_counts,
    time_bound=_counts,
    models=_models,
    history=_events,
    refusals=_events,
)


def _report(**changes):
    installed = Installed(bundle="a" * 64, version="2.0", release=7)
    status = ModelStatus(active=installed, previous=None, candidate=None)
    report = StatusReport(
        device=IDENTITY.id,
        model="terminal",
        runtime="0.1.0",
        keys=KEYS.describe(),
        made=0,
        time_bound=1_790_000_000,
        models={"my-model": status},
    )
    return dataclasses.replace(report, **changes)


def _event(**changes):
    event = Event(time=1, name="my-model", what="refused", bundle="b" * 64, reason="too slow")
    return dataclasses.replace(event, **changes)


@given(_reports)
def test_whatever_a_box_reports_is_read_as_it_was_said(report):
    data = sign_status(report, KEYS.sign)
    assert claimed_device(data) == report.device
    assert verify_status(data, IDENTITY.signing_key) == report


def test_another_boxs_signature_is_refused():
    data = sign_status(_report(), STRANGER.sign)
    with pytest.raises(TrustError, match="not signed by this box"):
        verify_status(data, IDENTITY.signing_key)


def test_a_signature_for_something_else_is_none_for_a_status():
    data = sign_status(_report(), lambda message: KEYS.sign(message[1:]))
    with pytest.raises(TrustError, match="not signed by this box"):
        verify_status(data, IDENTITY.signing_key)


@given(st.data())
def test_every_change_of_what_was_signed_is_refused(data):
    document = json.loads(sign_status(_report(), KEYS.sign))
    field = data.draw(st.sampled_from(["report", "signature"]))
    content = bytearray(base64.b64decode(document[field]))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    document[field] = base64.b64encode(content).decode()
    with pytest.raises(TrustError):
        verify_status(json.dumps(document).encode(), IDENTITY.signing_key)


def test_a_signed_report_cannot_be_passed_off_as_another_boxs():
    document = json.loads(sign_status(_report(), KEYS.sign))
    document["device"] = "0" * 64
    with pytest.raises(TrustError, match="inside from another"):
        verify_status(json.dumps(document).encode(), IDENTITY.signing_key)


def test_a_signed_report_of_a_format_that_nobody_knows_is_refused():
    report = json.dumps({"format": "outpost-status/2"}).encode()
    document = json.loads(sign_status(_report(), KEYS.sign))
    document["report"] = base64.b64encode(report).decode()
    document["signature"] = base64.b64encode(KEYS.sign(b"outpost.status/1\0" + report)).decode()
    with pytest.raises(TrustError, match="no status that this build knows"):
        verify_status(json.dumps(document).encode(), IDENTITY.signing_key)


def test_a_long_history_is_cut_to_its_newest_part():
    events = tuple(_event(time=number) for number in range(MAX_EVENTS + 50))
    data = sign_status(_report(history=events, refusals=events), KEYS.sign)
    report = verify_status(data, IDENTITY.signing_key)
    assert report.history == report.refusals == events[-MAX_EVENTS:]


def test_a_long_reason_and_one_that_is_no_unicode_are_made_fit():
    events = (_event(reason="x" * 9999), _event(reason="no file \udcff"))
    data = sign_status(_report(history=events), KEYS.sign)
    history = verify_status(data, IDENTITY.signing_key).history
    assert [event.reason for event in history] == ["x" * MAX_REASON, "no file ?"]


def test_the_longest_report_that_a_box_makes_is_not_too_large_to_be_read():
    events = (_event(reason="\N{GRINNING FACE}" * MAX_REASON, name="n" * 63),) * MAX_EVENTS
    installed = Installed(bundle="a" * 64, version="v" * 63, release=(1 << 53) - 1)
    status = ModelStatus(active=installed, previous=installed, candidate=installed)
    models = {f"{number:063}": status for number in range(1000)}
    report = _report(models=models, history=events, refusals=events)
    assert verify_status(sign_status(report, KEYS.sign), IDENTITY.signing_key) == report


def test_what_is_too_large_is_refused_before_it_is_read():
    with pytest.raises(TrustError, match="larger than"):
        verify_status(b" " * (MAX_STATUS_BYTES + 1), IDENTITY.signing_key)


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(TrustError):
        verify_status(garbage, IDENTITY.signing_key)
    with pytest.raises(TrustError):
        claimed_device(garbage)
