"""Sources: Hugging Face checkpoint folders, and LoRA adapters beside them.

Rules, checked before any library reads a weight:

1. Weights are safetensors; pickled weights can run code and are refused.
2. A checkpoint that brings its own code (``auto_map``) is refused.
3. A checkpoint that is quantized already is refused: its evidence would compare
   with something that nobody trained.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from optimum.exporters.tasks import TasksManager
from outpost_runtime.bundle import describe_file

from outpost_export.errors import ConversionError, SourceError
from outpost_export.recipe import EMBEDDING_TASK

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HASHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "[0-9]_*/*.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint folder that passed the rules.

    Attributes:
        config: transformers' configuration.
        task: What the checkpoint was trained for, in optimum's words.
        licence: What its card says, or "unknown".
        digests: SHA-256 of its files by name.
    """

    folder: Path
    config: Any
    task: str
    licence: str
    digests: dict[str, str]


def read_source(folder: Path, *, task: str | None = None) -> Source:
    """Check a checkpoint folder and read what it is.

    Args:
        task: What it does, if its configuration does not say.

    Raises:
        SourceError: It is no checkpoint that can be used; the message says why.
    """
    config = _json(folder, "config.json")
    _refuse_code(folder, config)
    _refuse_pickles(folder)
    if "quantization_config" in config:
        raise SourceError(
            f"{folder} is quantized already.", hint="Export the checkpoint it was made from."
        )
    try:
        parsed = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes on a bad configuration
        raise SourceError(f"transformers cannot read {folder / 'config.json'}: {error}") from error
    return Source(
        folder=folder,
        config=parsed,
        task=task or _task(folder, parsed),
        licence=licence_of(folder),
        digests=digests_of(folder),
    )


def check_adapter(folder: Path) -> None:
    """Check that a folder is a LoRA adapter of PEFT with safetensors.

    Raises:
        SourceError: It is not; the message says why.
    """
    config = _json(folder, "adapter_config.json")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SourceError(f"{folder} is a {kind} adapter; LORA adapters can be merged.")
    if not (folder / "adapter_model.safetensors").is_file():
        _refuse_pickles(folder)
        raise SourceError(f"{folder / 'adapter_model.safetensors'} is missing.")


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint that can shape a build."""
    paths = sorted(path for pattern in _HASHED for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): describe_file(path).sha256 for path in paths}


def licence_of(folder: Path) -> str:
    """Return the licence that a model card names in its front matter, or "unknown"."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    front = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else "unknown"


def load_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a checkpoint.

    Raises:
        SourceError: There is none that the runtime could use, too.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes on bad tokenizer files
        raise SourceError(f"transformers cannot read the tokenizer of {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise SourceError(
            f"{folder} has no tokenizer.json; save its tokenizer with transformers 5."
        )
    return tokenizer


def load_model(folder: Path, model_class: Any) -> Any:
    """Return a checkpoint as a float32 torch model in evaluation mode.

    Args:
        model_class: An ``AutoModelFor…`` of transformers.

    Raises:
        ConversionError: transformers cannot load it.
    """
    try:
        model = model_class.from_pretrained(
            folder,
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
        )
    except Exception as error:  # transformers raises what it likes on bad weights
        raise ConversionError(f"transformers cannot load {folder}: {error}") from error
    return model.eval()


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((folder / name).read_text("utf-8"))
    except OSError as error:
        raise SourceError(
            f"{folder} is not usable: {name} cannot be read ({error.strerror}).",
            hint="SOURCE is a folder that transformers' save_pretrained has written.",
        ) from error
    except ValueError as error:
        raise SourceError(f"{folder / name} is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise SourceError(f"{folder / name} is not a JSON object.")
    return document


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise SourceError(
            f"{folder} brings its own Python code (auto_map), which is never run here.",
            hint="Save the checkpoint with an architecture that transformers has.",
        )


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise SourceError(
            f"{folder} has pickled weights ({pickles[0]}), which can run code and are refused.",
            hint="Save it as safetensors: model.save_pretrained(folder).",
        )
    raise SourceError(f"{folder} has no *.safetensors weights.")


def _task(folder: Path, config: Any) -> str:
    if (folder / "modules.json").is_file():
        return EMBEDDING_TASK
    architecture = (config.architectures or ["none"])[0]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise SourceError(
            f"{folder} has the architecture '{architecture}', which transformers does not know.",
            hint="Save it with an architecture of transformers, or name its task with --task.",
        )
    try:
        return str(TasksManager.infer_task_from_model(model_class))
    except (KeyError, ValueError) as error:
        raise SourceError(f"The task of a {architecture} is not known: {error}.") from error
