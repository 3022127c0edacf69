"""LoRA adapters, merged into their base: W + scale · B·A (Hu et al. 2021)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from outpost_export.errors import ConversionError, SourceError
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

    Raises:
        SourceError: The folder is no LoRA adapter of safetensors.
        ConversionError: The adapter does not fit this base.
    """
    save_merged(load_tuned(source, adapter), source, adapter, out)


def load_tuned(source: Source, adapter: Path) -> PeftModel:
    """Load a base with its adapter, float32. Raises as :func:`merge` does."""
    check_adapter(adapter)
    model = load_model(source.folder, transformers.AutoModelForCausalLM)
    with _library_errors(source, adapter):
        tuned = PeftModel.from_pretrained(model, adapter)
        _check_all_weights_found_their_place(tuned, adapter)
    return tuned


def save_merged(tuned: PeftModel, source: Source, adapter: Path, out: Path) -> None:
    """Merge and write a checkpoint; ``tuned`` is used up.

    The adapter's own tokenizer, chat template and generation configuration win
    over the base's: a fine-tune may have brought them.
    """
    with _library_errors(source, adapter):
        tuned.merge_and_unload(safe_merge=True).save_pretrained(out)
    for name in _TOKENIZER_FILES:
        for folder in (adapter, source.folder):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
                break


@contextmanager
def _library_errors(source: Source, adapter: Path) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # PEFT raises what it likes on shapes that do not fit
        raise ConversionError(
            f"The adapter {adapter} cannot be merged into {source.folder}: {error}",
            hint="Is it an adapter of this very base?",
        ) from error


def _check_all_weights_found_their_place(tuned: PeftModel, adapter: Path) -> None:
    # PEFT only warns when a name matches nothing, and leaves that layer as it was initialized.
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        brought = set(file.keys())
    expected = set(get_peft_model_state_dict(tuned))
    if brought != expected:
        strange = min(brought ^ expected)
        raise SourceError(
            f"The weights of {adapter} do not fit its base: '{strange}' is only on one side.",
            hint="Is it an adapter of this very base?",
        )
