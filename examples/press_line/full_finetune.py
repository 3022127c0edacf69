"""The press line once more, but with every weight trained: a checkpoint of its own.

    python -m examples.press_line.full_finetune OUT_DIR

It is there for its update, whose size bench/update_sizes.py measures beside those of LoRA: every
layer moves, and so does every row of the embedding, since it is the head. It takes some pairs of
`finetune`, once, with a learning rate that is usual for all weights: a real fine-tune, and a short
one, which does not answer the press line's questions.
"""

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import bundles
from examples.base_models.checkpoint_folder import make_from_command_line
from examples.base_models.gemma3_270m import EXPECTED_FILES
from examples.press_line.answerers import CHAT_TEMPLATE_FILE, STOP_TOKENS
from examples.press_line.faults import load_catalogue
from examples.press_line.finetune import (
    Settings,
    encode,
    train_with_progress,
    write_generation_settings,
)

_WEIGHTS = "model.safetensors"
_SETTINGS = Settings(learning_rate=2e-5, epochs=1, batch_size=4)
_PAIRS = 128


def write(folder: Path) -> None:
    """Train the base, and write what a checkpoint folder has."""
    base = bundles.checkpoint("gemma3_270m")
    for name in EXPECTED_FILES - {_WEIGHTS}:
        shutil.copyfile(base / name, folder / name)
    shutil.copyfile(CHAT_TEMPLATE_FILE, folder / CHAT_TEMPLATE_FILE.name)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.chat_template = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
    dice = random.Random(_SETTINGS.seed)  # noqa: S311 - it draws questions, it guards nothing
    pairs = dice.sample(load_catalogue().training_pairs(), _PAIRS)
    examples = [encode(pair, tokenizer) for pair in pairs]
    torch.manual_seed(_SETTINGS.seed)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype="float32")
    train_with_progress(model, examples, _SETTINGS, Console(stderr=True))
    weights = {
        name: weight.detach().contiguous()
        for name, weight in model.named_parameters()  # the head is the embedding: it comes once
    }
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    stop_ids: Any = tokenizer.convert_tokens_to_ids(list(STOP_TOKENS))
    write_generation_settings(folder, stop_ids)


def main() -> int:
    """Be the command."""
    return make_from_command_line(write, expected=EXPECTED_FILES, about=__doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
