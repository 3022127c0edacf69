"""The content keys that a box has: wrapped for the box in its store, unwrapped in memory.

A repository holds a content key wrapped for the box itself or for one of its groups. What came is
unwrapped, compared with the identity that was asked for, and only then written, wrapped for the
box itself: from then on the box needs neither repository nor group to use it::

    STORE/keys/<key>/<recipient>.json
"""

from pathlib import Path

from outpost_runtime.bundle import sync_folder, write_durably
from outpost_runtime.errors import NotFoundError, StoreError, TrustError
from outpost_runtime.update.content_keys import (
    MAX_GROUPS,
    MAX_WRAPPED_BYTES,
    SecretKind,
    WrappedKey,
    encode_wrapped_key,
    group_key_path,
    parse_wrapped_key,
    recipient_id,
    unwrap_through_group,
    wrap_content_key,
    wrapped_key_path,
)
from outpost_runtime.update.device_keys import KeyStore, open_keys
from outpost_runtime.update.fetch import Fetcher, read_whole

_ANY_MODEL = "any"  # the keys are the same, whatever a box is


class KeyRing:
    """Content keys of a box. May be used from several threads.

    Args:
        store: The store's folder.
        keys: The box's own keys.
        public_key: The encryption key of the box's identity.
    """

    def __init__(self, store: Path, keys: KeyStore, public_key: bytes) -> None:
        self._store = store
        self._keys = keys
        self._public_key = public_key
        self._recipient = recipient_id(public_key)
        self._secrets: dict[str, bytes] = {}

    def secret(self, key: str) -> bytes:
        """Return a content key that is in the store.

        Args:
            key: Its identity, from a verified release.

        Raises:
            NotFoundError: The store has it not, or damaged.
        """
        if key not in self._secrets:
            path = self._store / wrapped_key_path(key, self._recipient)
            try:
                with path.open("rb") as file:
                    wrapped = parse_wrapped_key(file.read(MAX_WRAPPED_BYTES + 1))
                _check(wrapped, SecretKind.CONTENT, key, self._recipient)
                self._secrets[key] = self._keys.unwrap(wrapped)
            except (OSError, TrustError) as error:
                raise NotFoundError(
                    f"The store has no usable content key {key[:12]}.",
                    hint="'outpost sync' brings it, if it was granted to this box.",
                ) from error
        return self._secrets[key]

    def obtain(self, key: str, fetcher: Fetcher) -> bytes:
        """Return a content key, from the store or else from a repository; keep it in the store.

        Raises:
            TrustError: The repository has it for neither this box nor its groups, or damaged.
            FetchError: The repository cannot be read.
            StoreError: The store cannot be written.
        """
        try:
            return self.secret(key)
        except NotFoundError:
            secret = self._granted(key, fetcher)
        self._keep(wrap_content_key(secret, self._public_key))
        self._secrets[key] = secret
        return secret

    def _granted(self, key: str, fetcher: Fetcher) -> bytes:
        direct = _fetched(fetcher, wrapped_key_path(key, self._recipient))
        if direct is not None:
            _check(direct, SecretKind.CONTENT, key, self._recipient)
            return self._keys.unwrap(direct)
        for number in range(1, MAX_GROUPS + 1):
            group = _fetched(fetcher, group_key_path(self._recipient, number))
            if group is None:
                break
            _check(group, SecretKind.GROUP, group.key, self._recipient)
            through = _fetched(fetcher, wrapped_key_path(key, group.key))
            if through is not None:
                _check(through, SecretKind.CONTENT, key, group.key)
                return unwrap_through_group(through, self._keys.unwrap(group))
        raise TrustError(
            f"The content key {key[:12]} was not granted to this box.",
            hint="Bring the box's identity to the publisher: 'outpost-export keys grant'.",
        )

    def _keep(self, wrapped: WrappedKey) -> None:
        path = self._store / wrapped_key_path(wrapped.key, wrapped.recipient)
        try:
            path.parent.mkdir(exist_ok=True)
            sync_folder(path.parent.parent)
            write_durably(path, encode_wrapped_key(wrapped))
        except OSError as error:
            raise StoreError(
                f"The content key cannot be kept in {path.parent}: {error.strerror or error}."
            ) from error


def open_ring(store: Path) -> KeyRing:
    """Return the content keys of a box that was provisioned.

    Raises:
        NotFoundError: It was not.
        StoreError: Its keys are damaged, or its TPM does not give them out.
    """
    keys = open_keys(store)
    return KeyRing(store, keys, keys.identity(_ANY_MODEL).encryption_key)


def _fetched(fetcher: Fetcher, path: str) -> WrappedKey | None:
    try:
        data = read_whole(fetcher, path, limit=MAX_WRAPPED_BYTES)
    except NotFoundError:
        return None
    return parse_wrapped_key(data)


def _check(wrapped: WrappedKey, kind: SecretKind, key: str, recipient: str) -> None:
    # Its own words are checked when it is unwrapped; here, that they are what was asked for.
    if (wrapped.kind, wrapped.key, wrapped.recipient) != (kind, key, recipient):
        raise TrustError(
            f"The wrapped key that came for {key[:12]} is another one.",
            hint="The source is damaged or lies; try another one.",
        )
