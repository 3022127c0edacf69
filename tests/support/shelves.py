"""A repository's signed offers, unsigned and in memory, with their releases on the disk."""

import hashlib
from dataclasses import replace
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import TrustError
from outpost_runtime.update.offer import Offer, release_path
from outpost_runtime.update.release import Release, parse_release


class ToyShelf:
    """Keeps the contract of :class:`outpost_export.publishing.shelf.Shelf`, but for signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offered: dict[Offer, str] = {}

    def offers(self) -> list[Offer]:
        return list(self._offered)

    def release(self, offer: Offer) -> Release:
        path = self.folder / self._offered[offer]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != path.name.split(".")[0]:
            raise TrustError(f"{path} is another release.")
        return parse_release(data)

    def files(self) -> list[str]:
        return list(self._offered.values())

    def add(self, family: str, offer: Offer, release: bytes) -> Offer:
        counters = [known.release for known in self._offered if known.name == offer.name]
        numbered = replace(offer, release=max(counters, default=0) + 1)
        folder, _, name = release_path(family, numbered).rpartition("/")
        path = f"targets/{folder}/{hashlib.sha256(release).hexdigest()}.{name}"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.folder / path, release)
        self._offered[numbered] = path
        return numbered

    def withdraw(self, offer: Offer) -> None:
        del self._offered[offer]
