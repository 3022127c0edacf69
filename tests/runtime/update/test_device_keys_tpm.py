import base64
import json
import shutil

import pytest
from outpost_runtime.errors import ConfigurationError, StoreError
from outpost_runtime.update.content_keys import wrap_content_key
from outpost_runtime.update.device_keys import open_keys, provision_keys

from tests.support import tpm

tpm2_pytss = pytest.importorskip(
    "tpm2_pytss",
    reason="tpm2-pytss is not installed: apt install swtpm libtss2-dev gcc pkg-config; "
    "pip install tpm2-pytss",
)
if tpm.missing():
    pytest.skip(tpm.missing(), allow_module_level=True)

SECRET = bytes(range(32))
REGISTER = 16  # the one that anybody may change


@pytest.fixture(scope="module")
def tcti(tmp_path_factory):
    with tpm.running_tpm(tmp_path_factory.mktemp("tpm")) as running:
        yield running


@pytest.fixture(scope="module")
def other_tcti(tmp_path_factory):
    with tpm.running_tpm(tmp_path_factory.mktemp("other")) as running:
        yield running


def _sealed_file(store):
    return store / "keys" / "device.tpm.json"


def _extend(tcti):
    with tpm2_pytss.ESAPI(tcti) as esys:
        digest = tpm2_pytss.TPMT_HA(hashAlg=tpm2_pytss.TPM2_ALG.SHA256)
        digest.digest.sha256 = b"\x01" * 32
        values = tpm2_pytss.TPML_DIGEST_VALUES([digest])
        esys.pcr_extend(tpm2_pytss.ESYS_TR(REGISTER), values)


def test_a_box_has_the_same_keys_whenever_its_tpm_opens_them(tmp_path, tcti):
    identity = provision_keys(tmp_path, tpm=tcti).identity("terminal")
    assert provision_keys(tmp_path, tpm=tcti).identity("terminal") == identity
    keys = open_keys(tmp_path, tpm=tcti)
    assert keys.identity("terminal") == identity
    assert keys.unwrap(wrap_content_key(SECRET, identity.encryption_key)) == SECRET


def test_keys_survive_a_reboot(tmp_path):
    with tpm.running_tpm(tmp_path / "tpm") as tcti:
        identity = provision_keys(tmp_path, tpm=tcti).identity("terminal")
    with tpm.running_tpm(tmp_path / "tpm") as tcti:
        assert open_keys(tmp_path, tpm=tcti).identity("terminal") == identity


@pytest.mark.incident("a stolen disk", where="keys sealed by a TPM")
def test_a_copied_disk_is_of_no_use_to_another_tpm(tmp_path, tcti, other_tcti):
    provision_keys(tmp_path / "box", tpm=tcti)
    shutil.copytree(tmp_path / "box", tmp_path / "thief")
    with pytest.raises(StoreError, match="another TPM"):
        open_keys(tmp_path / "thief", tpm=other_tcti)


def test_a_thief_who_changes_the_parents_name_still_gets_nothing(tmp_path, tcti, other_tcti):
    for place, used in (("box", tcti), ("thief", other_tcti)):
        provision_keys(tmp_path / place, tpm=used)
    box, thief = (json.loads(_sealed_file(tmp_path / p).read_bytes()) for p in ("box", "thief"))
    _sealed_file(tmp_path / "thief").write_text(json.dumps(box | {"parent": thief["parent"]}))
    with pytest.raises(StoreError, match="does not give this box's keys out"):
        open_keys(tmp_path / "thief", tpm=other_tcti)


def test_the_secret_is_not_on_the_disk(tmp_path, tcti):
    keys = provision_keys(tmp_path, tpm=tcti)
    secret = keys._secret
    assert len(secret) == 32
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for spelled in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert spelled not in content


def test_only_the_owner_can_read_the_sealed_keys(tmp_path, tcti):
    provision_keys(tmp_path, tpm=tcti)
    assert _sealed_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_keys_bound_to_registers_are_kept_back_when_one_has_changed(tmp_path, tcti):
    keys = provision_keys(tmp_path, tpm=tcti, pcrs=(REGISTER,))
    identity = keys.identity("terminal")
    assert open_keys(tmp_path, tpm=tcti).identity("terminal") == identity
    _extend(tcti)
    with pytest.raises(StoreError, match="registers"):
        open_keys(tmp_path, tpm=tcti)


def test_the_registers_cannot_be_written_out_of_the_document(tmp_path, tcti):
    provision_keys(tmp_path, tpm=tcti, pcrs=(REGISTER,))
    document = json.loads(_sealed_file(tmp_path).read_bytes()) | {"pcrs": []}
    _sealed_file(tmp_path).write_text(json.dumps(document))
    with pytest.raises(StoreError, match="does not give this box's keys out"):
        open_keys(tmp_path, tpm=tcti)


def test_a_register_that_no_tpm_has_is_refused(tmp_path, tcti):
    with pytest.raises(ConfigurationError, match="0 to 23"):
        provision_keys(tmp_path, tpm=tcti, pcrs=(24,))
    assert not _sealed_file(tmp_path).exists()


def test_a_tpm_that_is_not_there_is_named_and_nothing_is_made(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        provision_keys(tmp_path, tpm=f"swtpm:path={tmp_path}/nothing")
    assert not _sealed_file(tmp_path).exists()


def test_keys_in_a_tpm_are_not_silently_joined_by_keys_in_a_file(tmp_path, tcti):
    provision_keys(tmp_path, tpm=tcti)
    with pytest.raises(StoreError, match="has keys already"):
        provision_keys(tmp_path)


def test_opening_keys_many_times_uses_nothing_of_the_tpm_up(tmp_path, tcti):
    identity = provision_keys(tmp_path, tpm=tcti).identity("terminal")
    for _ in range(20):  # a TPM has room for three objects and a few sessions
        assert open_keys(tmp_path, tpm=tcti).identity("terminal") == identity


@pytest.mark.parametrize("field", ["parent", "public", "private"])
@pytest.mark.parametrize("place", [0, 1, 2, 10, -1])
def test_a_damaged_document_is_refused(tmp_path, tcti, field, place):
    provision_keys(tmp_path, tpm=tcti)
    document = json.loads(_sealed_file(tmp_path).read_bytes())
    content = bytearray(base64.b64decode(document[field]))
    content[place] ^= 0x55
    document[field] = base64.b64encode(content).decode()
    _sealed_file(tmp_path).write_text(json.dumps(document))
    with pytest.raises(StoreError):
        open_keys(tmp_path, tpm=tcti)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "outpost-tpm-secret/2"},
        {"private": ""},
        {"public": ""},
        {"parent": ""},
        {"public": "AAAA"},
        {"pcrs": [99]},
        {"pcrs": [-1]},
        {"pcrs": "7"},
        {"more": 1},
    ],
)
def test_a_document_that_is_not_exactly_right_is_refused(tmp_path, tcti, change):
    provision_keys(tmp_path, tpm=tcti)
    document = json.loads(_sealed_file(tmp_path).read_bytes()) | change
    _sealed_file(tmp_path).write_text(json.dumps(document))
    with pytest.raises(StoreError):
        open_keys(tmp_path, tpm=tcti)


def test_people_are_told_what_the_tpm_is_good_for(tmp_path, tcti):
    keys = provision_keys(tmp_path, tpm=tcti, pcrs=(7,))
    assert "sealed by this box's TPM 2.0" in keys.describe()
    assert "registers 7" in keys.describe()
