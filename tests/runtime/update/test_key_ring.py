import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from outpost_runtime.errors import FetchError, NotFoundError, StoreError, TrustError
from outpost_runtime.update.content_keys import (
    MAX_GROUPS,
    content_key_id,
    encode_wrapped_key,
    group_key_path,
    public_bytes,
    recipient_id,
    wrap_content_key,
    wrap_group_key,
    wrapped_key_path,
)
from outpost_runtime.update.device_keys import provision_keys
from outpost_runtime.update.key_ring import KeyRing

from tests.support.repositories import FilesInMemory

SECRET = bytes(range(32))
KEY = content_key_id(SECRET)
GROUP = X25519PrivateKey.from_private_bytes(bytes([3]) * 32)
GROUP_ID = recipient_id(public_bytes(GROUP))


class Box:
    """A box in a folder, and what a publisher writes for it."""

    def __init__(self, folder):
        self.store = folder
        self.keys = provision_keys(folder)
        self.public_key = self.keys.identity("terminal").encryption_key
        self.recipient = recipient_id(self.public_key)

    def ring(self):
        return KeyRing(self.store, self.keys, self.public_key)

    def granted(self, secret=SECRET):
        wrapped = wrap_content_key(secret, self.public_key)
        return {wrapped_key_path(wrapped.key, self.recipient): encode_wrapped_key(wrapped)}

    def joined(self, number, group=GROUP):
        wrapped = wrap_group_key(group, self.public_key)
        return {group_key_path(self.recipient, number): encode_wrapped_key(wrapped)}


def _granted_to_group(group=GROUP):
    wrapped = wrap_content_key(SECRET, public_bytes(group))
    return {wrapped_key_path(KEY, wrapped.recipient): encode_wrapped_key(wrapped)}


def _group(number):
    return X25519PrivateKey.from_private_bytes(bytes([100 + number]) * 32)


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


def test_a_granted_key_is_fetched_once_and_is_there_without_a_network_from_then_on(box):
    repository = FilesInMemory(box.granted())
    assert box.ring().obtain(KEY, repository) == SECRET
    nothing = FilesInMemory({})
    assert box.ring().obtain(KEY, nothing) == SECRET
    assert box.ring().secret(KEY) == SECRET
    assert nothing.asked == []


def test_a_key_that_was_granted_to_a_group_of_the_box_reaches_it(box):
    repository = FilesInMemory(box.joined(1) | _granted_to_group())
    assert box.ring().obtain(KEY, repository) == SECRET


def test_a_box_looks_through_all_its_groups(box):
    files = {}
    for number in range(1, MAX_GROUPS):
        files |= box.joined(number, _group(number))
    repository = FilesInMemory(files | box.joined(MAX_GROUPS) | _granted_to_group())
    assert box.ring().obtain(KEY, repository) == SECRET


def test_a_repository_cannot_keep_a_box_busy_with_endless_groups(box):
    files = {}
    for number in range(1, 3 * MAX_GROUPS):
        files |= box.joined(number, _group(number))
    repository = FilesInMemory(files)
    with pytest.raises(TrustError):
        box.ring().obtain(KEY, repository)
    assert len(repository.asked) == 1 + 2 * MAX_GROUPS


def test_a_key_from_a_group_stays_when_the_group_is_gone_from_the_repository(box):
    box.ring().obtain(KEY, FilesInMemory(box.joined(1) | _granted_to_group()))
    assert box.ring().secret(KEY) == SECRET


def test_a_key_that_was_not_granted_is_called_that(box, tmp_path):
    other = Box(tmp_path / "other")
    with pytest.raises(TrustError, match="not granted") as error:
        box.ring().obtain(KEY, FilesInMemory(other.granted() | _granted_to_group()))
    assert "keys grant" in error.value.hint
    with pytest.raises(NotFoundError, match=KEY[:12]):
        box.ring().secret(KEY)


def test_another_key_under_the_path_of_the_one_asked_for_is_refused_and_not_kept(box):
    path = wrapped_key_path(KEY, box.recipient)
    (other,) = box.granted(bytes(32)).values()
    with pytest.raises(TrustError, match="another one"):
        box.ring().obtain(KEY, FilesInMemory({path: other}))
    assert not (box.store / path).exists()


def test_a_forged_group_changes_nothing_for_a_key_that_is_in_the_store(box):
    box.ring().obtain(KEY, FilesInMemory(box.joined(1) | _granted_to_group()))
    forged = FilesInMemory(box.joined(1, _group(9)))
    assert box.ring().obtain(KEY, forged) == SECRET


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda _: b"", lambda d: d + b"x" * 9999]
)
def test_a_damaged_key_in_the_store_is_brought_again(box, damage):
    repository = FilesInMemory(box.granted())
    box.ring().obtain(KEY, repository)
    path = box.store / wrapped_key_path(KEY, box.recipient)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NotFoundError, match="no usable content key"):
        box.ring().secret(KEY)
    assert box.ring().obtain(KEY, repository) == SECRET
    assert box.ring().secret(KEY) == SECRET


def test_a_source_that_fails_is_no_refusal(box):
    with pytest.raises(FetchError):
        box.ring().obtain(KEY, FilesInMemory({}, failing=True))


def test_a_store_that_cannot_be_written_is_named(box):
    (box.store / "keys" / KEY).write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot be kept"):
        box.ring().obtain(KEY, FilesInMemory(box.granted()))


def test_the_ring_shows_no_secret(box):
    ring = box.ring()
    ring.obtain(KEY, FilesInMemory(box.granted()))
    assert SECRET.hex() not in repr(ring)
    assert repr(SECRET) not in repr(ring)
