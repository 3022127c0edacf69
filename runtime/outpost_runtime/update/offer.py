"""An offer: what signed targets metadata says of a release (``custom``), and for whom it is.

Its schema is documented in ``docs/update-format.md``. :mod:`offers` verifies offers, :mod:`rollout`
chooses among them.
"""

import re
from dataclasses import dataclass
from typing import Any

from outpost_runtime.documents import Reader
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.update.signed_fields import (
    DIGEST,
    NAME,
    count,
    fields,
    foreign,
    matching,
    names,
)

_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """For whom a release is, and when.

    Attributes:
        rings: Devices of these rings; empty for every ring.
        percent: Share of them, 0 to 100; 0 halts.
        not_before: Seconds since 1970 (UTC), or None.
        not_after: The same; later, nobody begins to install it.
    """

    rings: tuple[str, ...] = ()
    percent: int = 100
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What signed targets metadata says of a release.

    Attributes:
        release: Counts up with every publication of a name; a device never goes below.
        bundle: The bundle's digest.
        devices: Device models that it is for; empty for every model.
        minimum_runtime: Oldest runtime version that can run it: up to four numbers.
    """

    name: str
    version: str
    release: int
    target: str
    bundle: str
    devices: tuple[str, ...] = ()
    minimum_runtime: str = "0.1.0"
    rollout: Rollout = Rollout()


def release_path(family: str, offer: Offer) -> str:
    """Return the TUF target path of a release."""
    return f"{family}/{offer.name}-{offer.release}-{offer.target}.json"


def encode_offer(offer: Offer) -> dict[str, Any]:
    """Return an offer as it stands in targets metadata: without what is as always."""
    document = fields(offer)
    document["devices"] = list(offer.devices)
    rollout = {k: v for k, v in fields(offer.rollout).items() if v is not None}
    document["rollout"] = rollout | {"rings": list(offer.rollout.rings)}
    if offer.rollout == Rollout():
        del document["rollout"]
    if not offer.devices:
        del document["devices"]
    return document


def parse_offer(custom: Any) -> Offer:
    """Read an offer from verified targets metadata.

    Raises:
        TrustError: It is none that this build knows.
    """
    try:
        reader = Reader(custom, path="offer:")
        offer = Offer(
            name=matching(reader, "name", NAME),
            version=matching(reader, "version", NAME),
            release=count(reader, "release"),
            target=matching(reader, "target", NAME),
            bundle=matching(reader, "bundle", DIGEST),
            devices=names(reader, "devices"),
            minimum_runtime=reader.optional(
                "minimum_runtime", lambda key: matching(reader, key, _VERSION)
            )
            or "0.1.0",
            rollout=reader.optional("rollout", lambda key: _rollout(reader.table(key)))
            or Rollout(),
        )
        reader.end()
    except InvalidInputError as error:
        raise foreign(error) from error
    return offer


def _rollout(reader: Reader) -> Rollout:
    rollout = Rollout(
        rings=names(reader, "rings"),
        percent=count(reader, "percent", most=100),
        not_before=reader.optional("not_before", lambda key: count(reader, key)),
        not_after=reader.optional("not_after", lambda key: count(reader, key)),
    )
    reader.end()
    return rollout
