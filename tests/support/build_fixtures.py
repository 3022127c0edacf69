"""Build the committed tiny bundles again: ``python -m tests.support.build_fixtures``.

The runtime's tests use them where neither torch nor onnx is installed.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from outpost_export.cli import main as export

from tests.support import checkpoints

FIXTURES = Path(__file__).parents[1] / "fixtures"


def main() -> None:
    """Replace every fixture."""
    shutil.rmtree(FIXTURES, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = {
            "tiny-decoder": checkpoints.save_decoder(Path(scratch) / "decoder", "llama"),
            "tiny-embedder": checkpoints.save_sentence_encoder(Path(scratch) / "embedder"),
            "tiny-classifier": checkpoints.save_classifier(Path(scratch) / "classifier"),
        }
        for name, source in sources.items():
            out = FIXTURES / name
            if export(["build", str(source), "--target", "cpu-fp32", "--out", str(out)]):
                sys.exit(1)


if __name__ == "__main__":
    main()
