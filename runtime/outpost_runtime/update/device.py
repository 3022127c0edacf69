"""``STORE/device.json``: who a box is and where it asks; written once by ``outpost provision``."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpost_runtime import __version__
from outpost_runtime.bundle import RUNNABLE_TARGETS, write_durably
from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import ConfigurationError, InvalidInputError, StoreError, unreadable
from outpost_runtime.update.rollout import Device

FORMAT = "outpost-box/1"
_MAX_BYTES = 1 << 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE = "device.json"

PREFERRED_TARGETS = ("cpu-int8", "cpu-fp32", "cpu-int4")
"""What a box takes where several targets of a model are offered: small and fast, if it is good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFile:
    """Who a box is.

    Attributes:
        id: Digest of the box's public keys; decides about percentages.
        model: The box's kind, such as ``press-terminal``.
        rings: Rings that it belongs to.
        names: Models that it wants; empty for all.
        targets: Targets that it may run, the best first; empty for :data:`PREFERRED_TARGETS`.
        sources: Where it asks: ``https://`` and ``http://`` addresses, or folders; in order.
    """

    id: str
    model: str
    rings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if strangers := set(self.targets) - set(RUNNABLE_TARGETS):
            raise ConfigurationError(
                f"This runtime does not run {', '.join(sorted(strangers))}.",
                hint=f"It runs {', '.join(RUNNABLE_TARGETS)}.",
            )
        for name in (self.model, *self.rings, *self.names):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(
                    f"'{name[:80]}' cannot be a name.",
                    hint="Use lower-case letters, digits, '.', '_' and '-'.",
                )

    def as_device(self) -> Device:
        """Return it as offers ask."""
        return Device(
            id=self.id,
            model=self.model,
            rings=self.rings,
            names=self.names,
            targets=self.targets or PREFERRED_TARGETS,
            runtime=__version__,
        )


def is_provisioned(store: Path) -> bool:
    """Say whether a store belongs to a box that takes signed bundles only.

    Raises:
        StoreError: It may not be read.
    """
    try:
        return (store / _FILE).exists()
    except OSError as error:
        raise unreadable(f"The store {store}", error) from error


def write_device(store: Path, device: DeviceFile) -> None:
    """Write who a box is; afterwards, nothing unsigned is taken."""
    fields: dict[str, Any] = {n: getattr(device, n) for n in device.__dataclass_fields__}
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()}
    write_durably(store / _FILE, canonical_json({"format": FORMAT, **plain}))


def read_device(store: Path) -> DeviceFile:
    """Return who a box is.

    Raises:
        StoreError: It is not provisioned, or the file is damaged.
    """
    path = store / _FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        return _device(parse_json_object(data, path=str(path)))
    except FileNotFoundError:
        raise StoreError(
            f"The store {store} is not provisioned: it knows no publisher.",
            hint="Tell it once whom to trust: outpost provision --root root.json --repo URL",
        ) from None
    except (OSError, InvalidInputError, ConfigurationError) as error:
        raise StoreError(
            f"{path} is damaged: {error}", hint="Restore it, or provision the box again."
        ) from error


def _device(reader: Reader) -> DeviceFile:
    found = reader.string("format")
    if found != FORMAT:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{FORMAT}'")
    device = DeviceFile(
        id=reader.string("id"),
        model=reader.string("model"),
        rings=tuple(reader.list_of("rings", str)),
        names=tuple(reader.list_of("names", str)),
        targets=tuple(reader.list_of("targets", str)),
        sources=tuple(reader.list_of("sources", str)),
    )
    reader.end()
    return device
