"""Gemma 3 270M: Outpost beside llama.cpp, onnxruntime-genai and OpenVINO, speed beside quality.

    make bench-text                          # about half an hour on two cores
    python -m bench.text --quick             # does everything run? Its figures mean little

bench/README.md says what is measured and how. Writes text.md, text.json and text.png
into bench/results.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.contestants import bundle_folders, contestants, endless
from bench.material import read_material
from bench.plot import draw
from bench.report import Report
from bench.rounds import FULL, QUICK, measure
from bench.tables import markdown
from examples import bundles

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Measure everybody; write tables, figures and plot."""
    options = _options()
    plan = QUICK if options.quick else FULL
    checkpoint = bundles.checkpoint("gemma3_270m")
    folders = bundle_folders(options.bundles)
    with tempfile.TemporaryDirectory(dir=bundles.CACHE) as scratch:  # links need one file system
        copies = {name: endless(path, Path(scratch, name)) for name, path in folders.items()}
        everybody = contestants(copies)
        measured = measure(plan, everybody, read_material(checkpoint), checkpoint, Path(scratch))
    report = Report(plan=plan, contestants=everybody, measured=measured)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "text.md").write_text(markdown(report), encoding="utf-8")
    (options.out / "text.json").write_text(report.json(), encoding="utf-8")
    draw(report, options.out / "text.png")
    print(markdown(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.text", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round of little")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument(
        "--bundles", type=Path, metavar="DIR",
        help="bundles that are there already, as EXAMPLE-TARGET (default: build them)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
