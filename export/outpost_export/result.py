"""What the steps of a build hand over."""

from dataclasses import dataclass, field

from outpost_runtime.bundle import FolderBundle
from outpost_runtime.interface import Interface
from outpost_runtime.tensors import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A graph with its measurements, in a folder that nobody else sees yet.

    Attributes:
        figures: What was measured, by name.
        golden: Tensors of the golden file.
        tolerances: How far a device may be off when it runs them.
        memory_bytes: What the opened model is expected to need.
        tokens_per_second: Of the scoring run on this machine; not part of the manifest,
            which must not depend on the weather.
        notes: What else is worth telling.
    """

    interface: Interface
    figures: dict[str, float]
    golden: dict[str, Array]
    tolerances: dict[str, float]
    memory_bytes: int
    tokens_per_second: float | None = field(default=None)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A bundle under its final name, and what is worth telling about its making."""

    bundle: FolderBundle
    tokens_per_second: float | None
    notes: tuple[str, ...] = ()
