"""How many bytes an update takes: Outpost beside zstd, its patches, content-defined chunks, hf-xet.

    make bench-update                        # both, about half an hour once the bundles are built
    python -m bench.update_sizes --quick     # the adapters only: does everything run?

bench/README.md says what is measured and how. Writes update-sizes.md and update-sizes.json
into bench/results.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.progress import say
from bench.update_codings import measure, versions
from bench.update_pairs import Pair, chosen, options
from bench.update_tables import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every update; write tables and figures."""
    parsed = options("bench.update_sizes", __doc__).parse_args(arguments)
    peers = versions()
    measured: list[tuple[Pair, dict[str, int]]] = []
    for pair in chosen(parsed):
        measured.append((pair, measure(pair)))
        _write(measured, peers, parsed.out)  # after each: the next one may fail, after an hour
    if not measured:
        say("There is no pair of bundles to measure.")
        return 1
    print(markdown(measured, peers))
    return 0


def _write(
    measured: list[tuple[Pair, dict[str, int]]], peers: dict[str, str], folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "update-sizes.md").write_text(markdown(measured, peers), encoding="utf-8")
    (folder / "update-sizes.json").write_text(_json(measured, peers), encoding="utf-8")


def _json(measured: list[tuple[Pair, dict[str, int]]], peers: dict[str, str]) -> str:
    updates = [
        {
            "update": pair.title,
            "target": pair.new.manifest.target,
            "grid": pair.grid or None,
            "bytes": sizes,
            "figures": pair.new.manifest.evidence.figures,
        }
        for pair, sizes in measured
    ]
    return json.dumps({"versions": peers, "updates": updates}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
