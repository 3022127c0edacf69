"""The releases of a store: what its encrypted bundles consist of."""

import re
from collections.abc import Collection
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.documents import canonical_json, parse_json_object
from outpost_runtime.errors import BundleError, InvalidInputError, TrustError
from outpost_runtime.update.release import MAX_RELEASE_BYTES, Release, encode_release, parse_release

_DIGEST = re.compile(r"[0-9a-f]{64}")
_EXPECTED = "expected.json"
_MAX_EXPECTED_BYTES = 1 << 16


class ReleaseFiles:
    """``STORE/releases/<bundle>.json``, and which bundles are on their way in.

    Args:
        folder: ``STORE/releases``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, bundle: str) -> bool:
        """Say whether the release of a bundle is here."""
        return bool(_DIGEST.fullmatch(bundle)) and self._path(bundle).exists()

    def bundles(self) -> set[str]:
        """Return the digests of the bundles whose releases are here."""
        names = (path.name.removesuffix(".json") for path in self._folder.glob("*.json"))
        return {name for name in names if _DIGEST.fullmatch(name)}

    def read(self, bundle: str) -> Release:
        """Return the release of a bundle.

        Raises:
            BundleError: It is not here, or damaged.
        """
        try:
            with self._path(bundle).open("rb") as file:
                return parse_release(file.read(MAX_RELEASE_BYTES))
        except (OSError, TrustError) as error:
            raise BundleError(
                f"The release of the bundle {bundle[:12]} cannot be read: {error}",
                hint="'outpost sync' brings it again.",
            ) from error

    def write(self, release: Release) -> None:
        """Keep a release, whose bundle is expected or here."""
        self._folder.mkdir(exist_ok=True)
        write_durably(self._path(release.bundle), encode_release(release))

    def expect(self, bundles: Collection[str]) -> None:
        """Keep the blocks of these bundles, though no slot names them yet."""
        self._folder.mkdir(exist_ok=True)
        write_durably(self._folder / _EXPECTED, canonical_json({"bundles": sorted(bundles)}))

    def expected(self) -> set[str]:
        """Return the bundles that are on their way in."""
        path = self._folder / _EXPECTED
        try:
            with path.open("rb") as file:
                reader = parse_json_object(file.read(_MAX_EXPECTED_BYTES), path=str(path))
            return set(reader.list_of("bundles", str))
        except (OSError, InvalidInputError):  # then what has come is fetched again
            return set()

    def remove_others(self, kept: Collection[str]) -> set[str]:
        """Remove releases of bundles that nobody needs; returns which."""
        gone = self.bundles() - set(kept)
        for bundle in gone:
            self._path(bundle).unlink(missing_ok=True)
        return gone

    def blocks(self) -> set[str]:
        """Return the ids of all blocks that releases here name.

        Raises:
            BundleError: One is damaged.
        """
        return {block.id for bundle in self.bundles() for block in self.read(bundle).blocks()}

    def _path(self, bundle: str) -> Path:
        return self._folder / f"{bundle}.json"
