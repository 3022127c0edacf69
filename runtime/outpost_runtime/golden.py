"""Golden inputs: what a bundle answered where it was built, asked again here.

The file is safetensors. For decoders it holds ``input_ids`` [n] and ``top_tokens``
[n - 1] int64; for other models ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``.
Tolerances stand in the manifest: processors round differently, damage does not round.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.models import Model
from outpost_runtime.tensor_engine import TensorEngine
from outpost_runtime.tensors import Array
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.scoring import score

Figures = dict[str, float]


def check(model: Model) -> Figures:
    """Run a bundle's golden inputs through its opened model, which must not be serving.

    Returns:
        What was measured: ``agreement`` and ``perplexity``, or ``max_difference``.

    Raises:
        BundleError: The answers are further off than the bundle tolerates.
    """
    evidence = model.bundle.manifest.evidence
    tensors = load(model.bundle.path(evidence.golden))
    try:
        if isinstance(model, TextModel):
            measured = _check_text(model.decoder, tensors)
            wanted = evidence.figures["golden_perplexity"]
            change = abs(measured["perplexity"] / wanted - 1)
            _within("agreement", -measured["agreement"], -evidence.tolerances["agreement"])
            _within("perplexity_change", change, evidence.tolerances["perplexity_change"])
        else:
            measured = _check_tensors(model.engine, tensors)
            limit = evidence.tolerances["max_difference"]
            _within("max_difference", measured["max_difference"], limit)
    except (LookupError, TypeError, ValueError, InvalidInputError) as error:
        raise BundleError(f"The golden inputs of the bundle are not usable: {error}.") from error
    return measured


def load(path: Path) -> dict[str, Array]:
    """Read golden tensors.

    Raises:
        BundleError: The file is not a safetensors file.
    """
    try:
        tensors: dict[str, Array] = safetensors.numpy.load_file(path)
    except (OSError, AttributeError, safetensors.SafetensorError) as error:  # unknown dtypes too
        raise BundleError(f"{path} cannot be read: {error}.") from error
    return tensors


def save(path: Path, tensors: dict[str, Array]) -> None:
    """Write golden tensors; equal tensors give equal bytes."""
    safetensors.numpy.save_file(tensors, path)


def _check_text(decoder: Decoder, tensors: dict[str, Array]) -> Figures:
    ids, top_tokens = tensors["input_ids"], tensors["top_tokens"]
    if not 1 < ids.size <= decoder.max_length or top_tokens.shape != (ids.size - 1,):
        raise ValueError(f"{ids.shape} tokens and {top_tokens.shape} answers do not fit")
    result = score(decoder, [int(token) for token in ids])
    agreement = result.agreement(top_tokens)
    return {"agreement": agreement, "perplexity": result.perplexity}


def _check_tensors(engine: TensorEngine, tensors: dict[str, Array]) -> Figures:
    inputs: dict[str, dict[str, Array]] = defaultdict(dict)
    outputs: dict[str, dict[str, Array]] = defaultdict(dict)
    for key, value in tensors.items():
        case, side, name = key.split("/", 2)
        {"inputs": inputs, "outputs": outputs}[side][case][name] = value
    differences: list[float] = []
    for case, feeds in inputs.items():
        got = engine.submit(feeds).result()
        if {name: array.shape for name, array in got.items()} != {
            name: array.shape for name, array in outputs[case].items()
        }:
            raise ValueError(f"the outputs of case {case} have other names or shapes")
        differences += [float(np.abs(got[name] - outputs[case][name]).max()) for name in got]
    # numpy's maximum of anything with a NaN is NaN, which no tolerance admits; of nothing, an error
    return {"max_difference": float(np.max(differences))}


def _within(name: str, value: float, limit: float) -> None:
    # `not <=` and not `>`: a NaN must fail.
    if not value <= limit:
        raise BundleError(
            f"The golden inputs give other answers than where the bundle was built: "
            f"{name} is {abs(value):.6g}, allowed is {abs(limit):.6g}.",
            hint="Do not serve this bundle on this device; build one for its processor.",
        )
