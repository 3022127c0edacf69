"""Golden inputs: what a bundle answered where it was built, asked again here.

The file is safetensors. For decoders it holds ``input_ids`` [n] and ``top_tokens``
[n - 1] int64; for other models ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``.
Tolerances stand in the manifest: processors round differently, damage does not round.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import TextInterface
from outpost_runtime.opening import Model
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.tensor.engine import TensorEngine
from outpost_runtime.tensors import Array
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
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
    if isinstance(model, TextModel):
        return _check_decoder(model.decoder, model.bundle)
    evidence = model.bundle.manifest.evidence
    tensors = load(model.bundle.path(evidence.golden))
    with _unusable():
        measured = _check_tensors(model.engine, tensors)
        limit = evidence.tolerances["max_difference"]
        _within("max_difference", measured["max_difference"], limit)
    return measured


def check_adapter(adapter: Bundle, base: Bundle) -> Figures:
    """Run an adapter's golden inputs through its base's graph for adapters, opened for this.

    Args:
        adapter: Verified before, as ``base``.

    Raises:
        BundleError: The answers are further off than the adapter tolerates, or it is none
            of this base.
    """
    interface = base.manifest.interface
    if not isinstance(interface, TextInterface) or interface.adapters is None:
        raise BundleError(f"The bundle '{base.manifest.name}' takes no adapters.")
    bank = AdapterBank(interface.adapters, base=base.digest, capacity=1)
    index = bank.load(adapter)
    graph = OrtSession(base.path(interface.adapters.model))
    try:
        session = AdapterSession(graph, bank, everywhere=index)
        decoder = Decoder(session, rows=1, max_length=interface.context_length)
        return _check_decoder(decoder, adapter)
    finally:
        graph.close()


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


@contextmanager
def _unusable() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, InvalidInputError) as error:
        raise BundleError(f"The golden inputs of the bundle are not usable: {error}.") from error


def _check_decoder(decoder: Decoder, bundle: Bundle) -> Figures:
    evidence = bundle.manifest.evidence
    tensors = load(bundle.path(evidence.golden))
    with _unusable():
        measured = _check_text(decoder, tensors)
        wanted = evidence.figures["golden_perplexity"]
        change = abs(measured["perplexity"] / wanted - 1)
        _within("agreement", -measured["agreement"], -evidence.tolerances["agreement"])
        _within("perplexity_change", change, evidence.tolerances["perplexity_change"])
    return measured


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
