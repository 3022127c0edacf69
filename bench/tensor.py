"""A sentence encoder and a classifier: Outpost beside MLServer and Triton, through gRPC.

    make bench-tensor                        # about ten minutes on two cores
    python -m bench.tensor --quick           # does everything run? Its figures mean little

bench/README.md says what is measured and how. Writes tensor.md, tensor.json and tensor.png
into bench/results.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.tensor_material import read_models
from bench.tensor_plot import draw
from bench.tensor_report import Report
from bench.tensor_rounds import FULL, QUICK, measure
from bench.tensor_servers import contestants
from bench.tensor_tables import markdown

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Measure everybody; write tables, figures and plot."""
    options = _options()
    plan = QUICK if options.quick else FULL
    models, everybody = read_models(), contestants()
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(plan, everybody, models, Path(scratch))
    report = Report(
        plan=plan,
        names=[contestant.name for contestant in everybody],
        models=[model.name for model in models],
        measured=measured,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tensor.md").write_text(markdown(report), encoding="utf-8")
    (options.out / "tensor.json").write_text(report.json(), encoding="utf-8")
    draw(report, options.out / "tensor.png")
    print(markdown(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.tensor", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round of little")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
