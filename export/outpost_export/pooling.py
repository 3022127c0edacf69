"""What turns a sentence encoder's token vectors into one: read from the source, put into the graph.

Sentence-transformers describes it in ``modules.json``: a Transformer, a Pooling,
and perhaps a Normalize. Without that file it pools by the mean and does not
normalize, and so do we.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from outpost_runtime.documents import Reader
from outpost_runtime.errors import InvalidInputError

from outpost_export.errors import SourceError

Mode = Literal["mean", "cls", "max"]

_MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """How a sentence's vector is made.

    Attributes:
        max_tokens: Longest text the model was trained to read, or None: as the model says.
    """

    mode: Mode
    normalize: bool
    max_tokens: int | None


def read_pooling(folder: Path) -> Pooling:
    """Read a source's pooling.

    Raises:
        SourceError: It has a module or a pooling mode that is not supported.
    """
    if not (folder / "modules.json").is_file():
        return Pooling(mode="mean", normalize=False, max_tokens=None)
    modules = _read(folder / "modules.json", list)
    mode: Mode = "mean"
    normalize = False
    for module in modules:
        if not isinstance(module, dict):
            raise SourceError(f"{folder / 'modules.json'} is not a list of objects.")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            mode = _mode(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise SourceError(f"{folder} has a module of type '{kind}', which is not supported.")
    return Pooling(mode=mode, normalize=normalize, max_tokens=_max_tokens(folder))


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return [batch, hidden] from [batch, sequence, hidden] and a 0/1 mask [batch, sequence]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling.mode == "cls":
        vector = hidden[:, 0]
    elif pooling.mode == "max":
        vector = hidden.masked_fill(weights == 0, torch.finfo(hidden.dtype).min).amax(1)
    else:
        vector = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vector, dim=1) if pooling.normalize else vector


def _mode(path: Path) -> Mode:
    config = _read(path, dict)
    if "pooling_mode" in config:  # sentence-transformers 5 and later name it
        named = str(config["pooling_mode"])
        asked = [named if named.startswith("pooling_mode_") else _long_name(named)]
    else:
        asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise SourceError(
            f"{path} asks for {', '.join(asked)}; supported is one of {list(_MODES)}."
        )
    return _MODES[asked[0]]


def _long_name(name: str) -> str:
    return {"cls": "pooling_mode_cls_token"}.get(name, f"pooling_mode_{name}_tokens")


def _max_tokens(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    try:
        reader = Reader(_read(path, dict), path=str(path))
        found = reader.optional("max_seq_length", reader.integer)
        if found is not None and found < 1:
            raise reader.fault("max_seq_length", "must be at least 1")
    except InvalidInputError as error:
        raise SourceError(error.message) from error
    return found


def _read(path: Path, kind: type) -> Any:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, kind):
        raise SourceError(f"{path} is not a JSON {'list' if kind is list else 'object'}.")
    return document
