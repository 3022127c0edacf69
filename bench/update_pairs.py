"""Which updates are measured: Gemma 3 270M and two fine-tunes, on fresh and on frozen grids."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.bundle import FolderBundle, read_bundle

from examples import bundles

FRESH, FROZEN = "fresh", "frozen"

_WORSE = ("--accept-worse", "update sizes are measured with it, not answers")
_TARGETS: dict[str, tuple[str, ...]] = {"cpu-int8": (), "cpu-int4": _WORSE}
_MERGED = {
    "base → fine-tune": (
        "base-of-press-line",
        {FRESH: "press-line", FROZEN: "press-line-on-base"},
    ),
    "fine-tune → its second version": (
        "press-line",
        {FRESH: "press-line-2-fresh", FROZEN: "press-line-2"},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An update.

    Attributes:
        title: From what to what.
        grid: Of the new bundle: FRESH, FROZEN, or empty where nothing is quantized.
        old: What the box has.
        new: What it gets.
    """

    title: str
    grid: str
    old: FolderBundle
    new: FolderBundle


def pairs(*, quick: bool) -> Iterator[Pair]:
    """Yield all updates, or only that of an adapter; bundles that are not there yet are built."""
    for target, more in () if quick else _TARGETS.items():
        for title, (old, versions) in _MERGED.items():
            for grid, new in versions.items():
                yield _pair(title, grid, *(bundles.path_of(n, target, *more) for n in (old, new)))
    names = "press-line-adapter", "press-line-2-adapter"
    yield _pair(
        "adapter → its second version", "", *(bundles.path_of(n, "cpu-int8") for n in names)
    )


def _pair(title: str, grid: str, old: Path, new: Path) -> Pair:
    return Pair(title=title, grid=grid, old=read_bundle(old), new=read_bundle(new))
