"""How long an update takes on a box, by phase: a first installation, deltas, an adapter.

    make bench-update                                    # after the sizes
    python -m bench.update_times --bundles .cache/bundles    # of what is there; builds nothing
    python -m bench.update_times --quick                 # the adapters only

Writes update-times.md and update-times.json into bench/results; bench/README.md says what is what.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from outpost_runtime.update.policy import UpdatePolicy

from bench.progress import say
from bench.transfer import serving
from bench.update_pairs import Pair, chosen, options
from bench.update_path import field
from bench.update_phases import middle, take
from bench.update_tables import Timed, times_markdown

MEGABITS = 20.0
"""Of the slow link: an ordinary DSL line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every update; write tables and figures."""
    parser = options("bench.update_times", __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="boxes per update (%(default)s)")
    parser.add_argument(
        "--megabits", type=float, default=MEGABITS, help="of the slow link (%(default)s)"
    )
    parsed = parser.parse_args(arguments)
    measured: dict[tuple[str, str, str], Timed] = {}
    for pair in chosen(parsed):
        for timed in measure(pair, parsed.rounds, parsed.megabits):
            measured.setdefault((timed.title, timed.target, timed.grid), timed)
        text = times_markdown(list(measured.values()), parsed.rounds, parsed.megabits)
        _write(text, list(measured.values()), parsed.out)
    if not measured:
        say("There is no pair of bundles to measure.")
        return 1
    print(text)
    return 0


def _write(text: str, measured: Sequence[Timed], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "update-times.md").write_text(text, encoding="utf-8")
    figures = json.dumps([asdict(each) for each in measured], indent=1, ensure_ascii=False)
    (folder / "update-times.json").write_text(figures + "\n", encoding="utf-8")


def measure(pair: Pair, rounds: int, megabits: float) -> Iterator[Timed]:
    """Yield the first installation of what a pair begins with, and then the update.

    Args:
        rounds: Boxes that take both from a folder; their medians count.
        megabits: A second; one more box takes both over HTTP under this cap.
    """
    with field() as at, serving(at.folder) as url:
        boxes = [at.box(f"box-{number}") for number in range(rounds)]
        slow_box, cap = at.box("slow-box"), UpdatePolicy(bytes_per_second=megabits * 1e6 / 8)
        first = [pair.old] if pair.base is None else [pair.base, pair.old]
        for title, grid, coming in (_first(pair), "", first), (pair.title, pair.grid, [pair.new]):
            for bundle in coming:
                at.publish(bundle)
            taken = [take(box, box.device.sources) for box in boxes]
            slow = take(slow_box, [url], cap)
            target = pair.new.manifest.target
            yield Timed(title=title, target=target, grid=grid, taken=middle(taken), slow=slow)


def _first(pair: Pair) -> str:
    old = pair.title.partition(" → ")[0]
    return f"nothing → {old if pair.base is None else f'base and {old}'}"


if __name__ == "__main__":
    sys.exit(main())
