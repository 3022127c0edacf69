"""LoRA adapters, merged into their base: W + scale · B·A (Hu et al. 2021)."""

import shutil
from pathlib import Path

import transformers
from peft import PeftModel

from outpost_export.errors import ConversionError
from outpost_export.source import Source, check_adapter, load_model

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def merge(source: Source, adapter: Path, out: Path) -> None:
    """Write the merged checkpoint, float32, into ``out``.

    The adapter's own tokenizer, chat template and generation configuration win
    over the base's: a fine-tune may have brought them.

    Raises:
        SourceError: The folder is no LoRA adapter of safetensors.
        ConversionError: The adapter does not fit this base.
    """
    check_adapter(adapter)
    model = load_model(source.folder, transformers.AutoModelForCausalLM)
    try:
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
        merged.save_pretrained(out)
    except Exception as error:  # PEFT raises what it likes on shapes that do not fit
        raise ConversionError(
            f"The adapter {adapter} cannot be merged into {source.folder}: {error}",
            hint="Is it an adapter of this very base?",
        ) from error
    for name in _TOKENIZER_FILES:
        for folder in (adapter, source.folder):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
                break
