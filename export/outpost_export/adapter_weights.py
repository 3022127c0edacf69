"""From a LoRA adapter of PEFT to the A and B that the runtime stacks.

Only what a base's second graph computes can be served beside others: B·(A·x) added
to the linear layers of the blocks. Everything else an adapter may bring (embeddings,
biases, DoRA's magnitudes) is refused here with the way out: merge it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from outpost_runtime.interface import AdapterSupport
from outpost_runtime.text.adapters import Weights
from peft import PeftModel
from peft.tuners.lora import Linear

from outpost_export.errors import SourceError
from outpost_export.lora_graph import FUSED

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # The others start from the base's own weights and change them.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
_EMPTY: tuple[Any, ...] = (None, False, [], {})
_CHANGES_MORE = (
    "alora_invocation_tokens", "arrow_config", "bias", "fan_in_fan_out", "init_lora_weights",
    "kasa_config", "layer_replication", "lora_bias", "modules_to_save", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
    "velora_config",
)  # fmt: skip
_MODULE = re.compile(r"(?:.*\.)?(layers\.\d+\.(?:self_attn|mlp)\.)(\w+)")


def check_servable(adapter: Path) -> None:
    """Refuse an adapter that is more than A and B of linear layers.

    Args:
        adapter: A folder that ``check_adapter`` has passed.

    Raises:
        SourceError: It is; the message names what it brings.
    """
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    for option in _CHANGES_MORE:
        value = config.get(option)
        if value not in _NEUTRAL.get(option, ()) and value not in _EMPTY:
            raise _cannot_serve(f"{adapter} has {option} = {json.dumps(value)}")


def weights_of(tuned: PeftModel, support: AdapterSupport) -> Weights:
    """Return an adapter's file as the runtime reads it; see ``text/adapters.py``.

    Args:
        tuned: The base with its adapter.
        support: What the base's bundle says about adapters.

    Raises:
        SourceError: The adapter changes a layer that the base's graph does not let
            change, or its rank is higher than the graph takes.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for path, module in _changed(tuned):
        found = _MODULE.fullmatch(path)
        if type(module) is not Linear or module.lora_variant or found is None:
            raise _cannot_serve(f"The adapter changes {path} ({type(module).__name__})")
        down = _array(module.lora_A["default"])
        up = _array(module.lora_B["default"]) * np.float32(module.scaling["default"])
        weights |= _parts(found.group(1), found.group(2), down, up, support)
    if not weights:
        raise SourceError("The adapter changes nothing.")
    return dict(sorted(weights.items()))


def _changed(tuned: PeftModel) -> Iterator[tuple[str, Any]]:
    for path, module in tuned.named_modules():
        if hasattr(module, "base_layer"):  # of every layer that PEFT has wrapped
            yield path, module


def _array(linear: torch.nn.Module) -> NDArray[np.float32]:
    array: NDArray[np.float32] = linear.get_parameter("weight").detach().float().numpy()
    return array


def _parts(
    block: str,
    name: str,
    down: NDArray[np.float32],
    up: NDArray[np.float32],
    support: AdapterSupport,
) -> Weights:
    """Name one layer's A [r, inputs] and B [outputs, r] as the graph does; B is transposed.

    Some checkpoints have as one layer what graphs have as several: all of them read A·x.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    first = 0
    for part in FUSED.get(name, (name,)):
        shape = support.linears.get(block + part)
        if shape is None:
            raise _cannot_serve(f"The base's graph takes no adapter for {block}{part}")
        if len(down) > support.rank:
            raise SourceError(
                f"The adapter's rank at {block}{part} is {len(down)}; "
                f"the base was built for adapters of rank {support.rank} at most.",
                hint=f"Build the base with --adapter-rank {len(down)}.",
            )
        weights[f"{block}{part}.lora_A"] = np.ascontiguousarray(down)
        rows = up[first : first + shape.outputs]
        weights[f"{block}{part}.lora_B"] = np.ascontiguousarray(rows.T)
        first += shape.outputs
    return weights


def _cannot_serve(what: str) -> SourceError:
    return SourceError(
        f"{what}, which cannot be served beside other adapters.",
        hint="Merge it: outpost-export build BASE --adapter ADAPTER.",
    )
