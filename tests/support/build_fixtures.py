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
        options = {"tiny-decoder": ["--adapter-rank", "8"]}
        for name, source in sources.items():
            _export("build", source, name, "--target", "cpu-fp32", *options.get(name, ()))
        decoder = sources["tiny-decoder"]
        settings = {
            "tiny-adapter-one": {"lora_alpha": 2},
            "tiny-adapter-two": {"seed": 4, "r": 8, "target_modules": ["q_proj", "down_proj"]},
        }
        adapters = {
            name: checkpoints.save_adapter(decoder, Path(scratch) / name, **changes)
            for name, changes in settings.items()
        }
        (adapters["tiny-adapter-one"] / "chat_template.jinja").write_text(
            "{{ bos_token }}One: {{ messages[-1].content }}"
        )
        base = FIXTURES / "tiny-decoder"
        for name, adapter in adapters.items():
            _export("build-adapter", adapter, name, "--base", str(base), "--source", str(decoder))


def _export(command: str, source: Path, name: str, *options: str) -> None:
    if export([command, str(source), "--out", str(FIXTURES / name), *options]):
        sys.exit(1)


if __name__ == "__main__":
    main()
