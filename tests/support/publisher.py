"""A publisher in memory with real keys, and a source that hands out its files.

What it writes is what ``outpost-export`` writes, made without it: the device's tests need no
exporter. Attacks are made of plain parts: files are a dictionary (copy it to freeze, merge it
to mix), signers can be exchanged, lifetimes shortened, ``now`` moved.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.metadata import (
    MEDIUM,
    PUBLISHED,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from outpost_runtime.update.offer import Offer, encode_offer, release_path
from outpost_runtime.update.offers import SignedOffer
from outpost_runtime.update.trust import FAMILY_ROLE, delegation
from securesystemslib.signer import CryptoSigner

NOW = 1_790_000_000
DAY = 86_400
ONLINE = ("snapshot", "timestamp")
_PIECE = 1 << 20


class MemoryFetcher:
    """A source of files in memory; keeps to the Fetcher protocol and counts.

    Args:
        files: Content by path; it is read anew for every request.
        endless: Paths that never end.
    """

    label = "memory"

    def __init__(self, files: Mapping[str, bytes], *, endless: Collection[str] = ()) -> None:
        self.files = files
        self.endless = endless
        self.requests: list[str] = []
        self.given = 0

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        self.requests.append(path)
        while path in self.endless:
            self.given += _PIECE
            yield bytes(_PIECE)
        if path not in self.files:
            raise NotFoundError(f"{self.label} has no {path}.")
        data = self.files[path]
        if len(data) > limit:
            raise FetchError(f"{path} is larger than {limit} bytes.")
        for place in range(start, len(data), _PIECE):
            piece = data[place : place + _PIECE]
            self.given += len(piece)
            yield piece


class Publisher:
    """A repository and the keys to it.

    Attributes:
        files: Everything that the repository holds, by path; blocks may be put there too.
        now: The publisher's clock; it stands still until somebody moves it.
        signers: By role, who signs it; exchange them to forge.
        lifetimes: By role, seconds from publication to expiry; ``stick`` has its own.
    """

    def __init__(
        self,
        *,
        now: int = NOW,
        families: Collection[str] = ("models",),
        root_keys: int = 1,
        root_threshold: int = 1,
    ) -> None:
        self.now = now
        self.files: dict[str, bytes] = {}
        self.lifetimes = {"root": 730 * DAY, "timestamp": 7 * DAY, "stick": 180 * DAY}
        self.signers = {"root": new_signers(root_keys), "targets": new_signers(1)}
        online = new_signers(1)
        self.signers |= dict.fromkeys(ONLINE, online)
        self.root = Root(consistent_snapshot=True, version=1)
        for role in ("root", "targets", *ONLINE):
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = root_threshold
        self.targets = Targets(delegations=Delegations({}, {}))
        self.families: dict[str, Targets] = {}
        self.snapshot = Snapshot(version=1, meta={})
        self.timestamps = {
            "timestamp": Timestamp(version=1),
            "stick": Timestamp(version=1, unrecognized_fields={MEDIUM: "stick"}),
        }
        self._write_root()
        for family in families:
            self._delegate(family)
        self._write("targets", self.targets)
        self._write_snapshot()
        self._write_timestamps()

    @property
    def root_bytes(self) -> bytes:
        """The first root: what a box is provisioned with."""
        return self.files["metadata/1.root.json"]

    def fetcher(
        self, files: Mapping[str, bytes] | None = None, *, endless: Collection[str] = ()
    ) -> MemoryFetcher:
        """A source of the repository as it is at each request, or of the given files."""
        return MemoryFetcher(self.files if files is None else files, endless=endless)

    def frozen(self) -> dict[str, bytes]:
        """A copy of the repository as it is now: a stick, a stale mirror, an attacker's tape."""
        return dict(self.files)

    def publish(self, offer: Offer, release: bytes, family: str = "models") -> SignedOffer:
        """Add a release, or change the offer of one, and sign everything that follows."""
        path = release_path(family, offer)
        target = TargetFile.from_data(path, release, ["sha256"])
        target.unrecognized_fields["custom"] = encode_offer(offer)
        self.families[family].targets[path] = target
        digest = hashlib.sha256(release).hexdigest()
        signed = SignedOffer(
            family=family, path=path, offer=offer, length=len(release), sha256=digest
        )
        self.files[signed.stored_path] = release
        self.sign_family(family)
        return signed

    def sign_family(self, family: str) -> None:
        """Sign a family's next version, the snapshot and the timestamps."""
        self.families[family].version += 1
        self._write(FAMILY_ROLE + family, self.families[family])
        self.sign_snapshot()

    def sign_targets(self) -> None:
        """Sign the next version of top-level targets, the snapshot and the timestamps."""
        self.targets.version += 1
        self._write("targets", self.targets)
        self.sign_snapshot()

    def sign_snapshot(self) -> None:
        """Sign the next version of the snapshot, and timestamps that name it."""
        self.snapshot.version += 1
        self._write_snapshot()
        self.refresh()

    def refresh(self) -> None:
        """Sign new timestamps of what is there."""
        for timestamp in self.timestamps.values():
            timestamp.version += 1
        self._write_timestamps()

    def add_family(self, family: str) -> None:
        """Delegate one more family, with a key of its own."""
        self._delegate(family)
        self.sign_targets()

    def withdraw_family(self, family: str) -> None:
        """Delegate a family no more; its file stays named, as TUF demands."""
        assert self.targets.delegations is not None
        assert self.targets.delegations.roles is not None
        del self.targets.delegations.roles[FAMILY_ROLE + family]
        self.sign_targets()

    def rotate(self, *roles: str) -> None:
        """Give top-level roles one new key, in the next root; old and new root keys sign it."""
        before, fresh = self.signers["root"], new_signers(1)
        for role in roles:
            for keyid in list(self.root.roles[role].keyids):
                self.root.revoke_key(keyid, role)
            self.root.add_key(fresh[0].public_key, role)
            self.root.roles[role].threshold = 1
            self.signers[role] = fresh
        self.root.version += 1
        self._write_root(*before)
        if "targets" in roles:
            self.sign_targets()
        else:
            self.sign_snapshot()

    def _delegate(self, family: str) -> None:
        role = FAMILY_ROLE + family
        self.signers[role] = new_signers(1)
        delegations = self.targets.delegations
        assert delegations is not None
        assert delegations.roles is not None
        delegations.roles[role] = delegation(family, [], 1)
        for signer in self.signers[role]:
            self.targets.add_key(signer.public_key, role)
        self.families[family] = Targets()
        self._write(role, self.families[family])

    def _write_root(self, *also: CryptoSigner) -> None:
        self.root.unrecognized_fields[PUBLISHED] = self.now
        data = self._signed("root", self.root, *also)
        self.files[f"metadata/{self.root.version}.root.json"] = data

    def _write(self, role: str, signed: Targets) -> None:
        data = self._signed(role, signed)
        self.files[f"metadata/{signed.version}.{role}.json"] = data
        self.snapshot.meta[f"{role}.json"] = MetaFile.from_data(signed.version, data, ["sha256"])

    def _write_snapshot(self) -> None:
        data, version = self._signed("snapshot", self.snapshot), self.snapshot.version
        self.files[f"metadata/{version}.snapshot.json"] = data
        for timestamp in self.timestamps.values():
            timestamp.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])

    def _write_timestamps(self) -> None:
        for name, timestamp in self.timestamps.items():
            timestamp.unrecognized_fields[PUBLISHED] = self.now
            self.files[f"metadata/{name}.json"] = self._signed("timestamp", timestamp, name=name)

    def _signed(
        self, role: str, signed: Signed, *also: CryptoSigner, name: str | None = None
    ) -> bytes:
        lifetime = self.lifetimes.get(name or role, 365 * DAY)
        signed.expires = datetime.fromtimestamp(self.now + lifetime, UTC)
        metadata = Metadata(signed)
        for signer in (*also, *self.signers[role]):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()


def new_signers(count: int) -> list[CryptoSigner]:
    """Make ed25519 keys."""
    return [CryptoSigner.generate_ed25519() for _ in range(count)]
