"""Which updates are measured: Gemma 3 270M and its fine-tunes, on fresh and on frozen grids."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.bundle import FolderBundle, read_bundle

from bench.progress import say
from examples import bundles

RESULTS = Path(__file__).with_name("results")

FRESH, FROZEN = "fresh", "frozen"

Find = Callable[..., Path | None]
"""From the name of an example, a target and further options to a bundle, or None without one."""

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
    "base → full fine-tune": (
        "base-of-press-line",
        {FRESH: "press-line-full", FROZEN: "press-line-full-on-base"},
    ),
}
_ADAPTERS = "adapter → its second version"
_ADAPTER_NAMES = ("press-line-adapter", "press-line-2-adapter", "gemma-3-270m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An update.

    Attributes:
        title: From what to what.
        grid: Of the new bundle: FRESH, FROZEN, or empty where nothing is quantized.
        old: What the box has.
        new: What it gets.
        base: What both need, if they are adapters.
    """

    title: str
    grid: str
    old: FolderBundle
    new: FolderBundle
    base: FolderBundle | None = None


def options(program: str, module_doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what both commands take, for :func:`chosen`, and of where results go."""
    about = (module_doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--quick", action="store_true", help="the adapters only")
    parser.add_argument(
        "--bundles", type=Path, metavar="DIR", help="measure what is here, and build nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    return parser


def chosen(parsed: argparse.Namespace) -> Iterator[Pair]:
    """Yield the updates that :func:`options` ask for, and say which comes."""
    find = bundles.path_of if parsed.bundles is None else kept_in(parsed.bundles)
    for pair in pairs(find, quick=parsed.quick):
        say(f"{pair.title}, {pair.new.manifest.target}, {pair.grid}")
        yield pair


def pairs(find: Find = bundles.path_of, *, quick: bool = False) -> Iterator[Pair]:
    """Yield all updates, or only that of an adapter, which comes first: it is the quickest.

    Args:
        find: What builds or finds bundles; what it does not have is left out.
    """
    yield from _pair(find, _ADAPTERS, "", _ADAPTER_NAMES, "cpu-int8", ())
    for target, more in () if quick else _TARGETS.items():
        for title, (old, versions) in _MERGED.items():
            for grid, new in versions.items():
                yield from _pair(find, title, grid, (old, new), target, more)


def kept_in(folder: Path) -> Find:
    """Return what finds bundles in a folder, such as ``.cache/bundles``, and builds none.

    A bundle is named by its example and target, perhaps with more behind it; the newest counts.
    """

    def find(name: str, target: str, *_: str) -> Path | None:
        found = [p for p in folder.glob(f"{name}-{target}*") if (p / "manifest.json").is_file()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    return find


def _pair(
    find: Find, title: str, grid: str, names: tuple[str, ...], target: str, more: tuple[str, ...]
) -> Iterator[Pair]:
    paths = [find(name, target, *more) for name in names]
    lacking = [name for name, path in zip(names, paths, strict=True) if path is None]
    if lacking:
        say(f"{title}, {target}, {grid}: left out, there is no {', '.join(lacking)}")
        return
    old, new, *base = (read_bundle(path) for path in paths if path is not None)
    yield Pair(title=title, grid=grid, old=old, new=new, base=base[0] if base else None)
