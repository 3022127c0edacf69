"""The commands ``outpost-export publish`` and ``outpost-export collect``."""

import argparse
import time
from pathlib import Path
from typing import Protocol

from outpost_runtime.bundle import read_bundle
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.offer import Offer, Rollout
from rich.console import Console
from rich.table import Table

from outpost_export.progress import ConsoleReporter
from outpost_export.publishing.collect import Collection, collect
from outpost_export.publishing.publication import Order, Publication, Warehouse
from outpost_export.publishing.publish import publish
from outpost_export.publishing.shelf import Shelf

_PUBLISH_HELP = """\
BUNDLE is a folder that 'outpost-export build' has written. Its files are cut at tensors into
blocks, encrypted with the family's content key, and written where they are not there yet; where
earlier bundles of its name are in the repository, so are differences from them, if they are
smaller. Then the offer is signed. Cut off anywhere, it can be run again, and goes on.
"""
_COLLECT_HELP = """\
Removes what no signed metadata names any more, and has not for the grace period: blocks and
differences of withdrawn releases, and what a publication left that was cut off.
"""
_DAY = 86_400
_MOST_DAYS = 3650
_MEGABYTE = 1e6


class Access(Protocol):
    """How the commands reach a repository's metadata and keys."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that say where repository and keys are; ``--repo`` among them."""

    def shelf(self, parsed: argparse.Namespace) -> Shelf:
        """Return the repository's signed offers.

        Raises:
            PublishError: There is no repository.
        """

    def content_key(self, parsed: argparse.Namespace, family: str) -> bytes:
        """Return a family's current content key.

        Raises:
            PublishError: There is no such family, or no passphrase opens its key.
        """


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", access: Access
) -> None:
    """Add the commands to those of ``outpost-export``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "publish",
        help="publish a bundle to a repository",
        description=_PUBLISH_HELP,
        formatter_class=raw,
    )
    _add_publish(parser, access)
    parser = commands.add_parser(
        "collect",
        help="remove from a repository what nobody needs any more",
        description=_COLLECT_HELP,
        formatter_class=raw,
    )
    access.add_arguments(parser)
    parser.add_argument(
        "--grace", type=_days, default=30, metavar="DAYS", help="wait so long (default: 30)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show it, and remove nothing")
    parser.set_defaults(run=lambda parsed: _collect(parsed, access))


def _add_publish(parser: argparse.ArgumentParser, access: Access) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    access.add_arguments(parser)
    parser.add_argument("--family", required=True, help="whose keys sign it")
    parser.add_argument(
        "--device-model",
        action="append",
        metavar="MODEL",
        help="for these devices; may be given several times (default: all)",
    )
    parser.add_argument(
        "--ring",
        action="append",
        metavar="RING",
        help="for devices of this ring; may be given several times (default: all)",
    )
    parser.add_argument(
        "--percent",
        type=int,
        choices=range(101),
        default=100,
        metavar="N",
        help="for this share of them; 0 offers it to nobody (default: 100)",
    )
    parser.add_argument(
        "--minimum-runtime",
        default="0.1.0",
        metavar="VERSION",
        help="oldest runtime that can run it (default: 0.1.0)",
    )
    parser.add_argument(
        "--delta-from",
        type=int,
        choices=range(17),
        default=2,
        metavar="N",
        help="make differences from so many earlier bundles (default: 2)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show it, and write nothing")
    parser.set_defaults(run=lambda parsed: _publish(parsed, access))


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= _MOST_DAYS:  # what is no number, too
        raise argparse.ArgumentTypeError(f"must be between 0 and {_MOST_DAYS}")
    return days


def _publish(parsed: argparse.Namespace, access: Access) -> int:
    read_bundle(parsed.bundle)  # before anybody is asked for a passphrase
    warehouse = Warehouse(
        folder=parsed.repo,
        blocks=BlockStore(parsed.repo / "blocks"),
        shelf=access.shelf(parsed),
        content_key=access.content_key(parsed, parsed.family),
    )
    order = Order(
        bundle=parsed.bundle,
        family=parsed.family,
        devices=tuple(parsed.device_model or ()),
        minimum_runtime=parsed.minimum_runtime,
        rollout=Rollout(rings=tuple(parsed.ring or ()), percent=parsed.percent),
        predecessors=parsed.delta_from,
        dry_run=parsed.dry_run,
    )
    publication = publish(order, warehouse, ConsoleReporter(Console(stderr=True)))
    console = Console()
    console.print(_headline(publication))
    console.print(_table(publication))
    return 0


def _headline(publication: Publication) -> str:
    offer = publication.offer
    what = f"{offer.name} {offer.version} ({offer.target})"
    if not publication.is_new:
        return f"{what} is offered already, as release {offer.release}; nothing was signed."
    if not offer.release:
        return f"{what} would be published; nothing was written."
    return f"{what} is published as release {offer.release}."


def _table(publication: Publication) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "blocks", "deltas", "bytes"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("bundle", f"{publication.blocks:,}", "", _megabytes(publication.stored))
    table.add_row(
        "new in the repository",
        f"{publication.new_blocks:,}",
        f"{publication.new_deltas:,}",
        _megabytes(publication.new_bytes),
    )
    for way in publication.ways:
        label = f"update from {_label(way.offer)}"
        saved = f"{_megabytes(way.moved)} instead of {_megabytes(way.full)}"
        table.add_row(label, f"{way.blocks:,}", f"{way.deltas:,}", saved)
    return table


def _collect(parsed: argparse.Namespace, access: Access) -> int:
    found = collect(
        parsed.repo,
        access.shelf(parsed),
        now=time.time(),
        grace=parsed.grace * _DAY,
        dry_run=parsed.dry_run,
    )
    Console().print(_summary(found, parsed.grace, dry_run=parsed.dry_run))
    return 0


def _summary(found: Collection, days: float, *, dry_run: bool) -> str:
    done = "would be removed" if dry_run else "removed"
    text = f"{found.removed:,} files {done}, {_megabytes(found.removed_bytes)}."
    if found.waiting:
        waiting = f"{found.waiting:,} more are unused, {_megabytes(found.waiting_bytes)}"
        text += f" {waiting}; they go {days:g} days after that was seen first."
    return text


def _label(offer: Offer) -> str:
    return f"release {offer.release} ({offer.version})"


def _megabytes(count: int) -> str:
    return f"{count / _MEGABYTE:,.1f} MB" if count >= _MEGABYTE / 10 else f"{count:,} B"
