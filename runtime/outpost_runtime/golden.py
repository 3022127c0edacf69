"""Golden inputs: what a bundle answered where it was built, asked again here.

For decoders the file holds ``input_ids`` [n] and ``top_tokens`` [n - 1] int64; for other
models ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``. Cases of a model with states
are run as steps of sequences: one whose states are zero begins another. Tolerances stand in
the manifest: processors round differently, damage does not round.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import ml_dtypes
import numpy as np

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import (
    BundleError,
    ExecutionError,
    InvalidInputError,
    UnavailableError,
)
from outpost_runtime.golden_file import of_bundle
from outpost_runtime.interface import TextInterface
from outpost_runtime.opening import Model, ModelSettings, as_errors_of_opening, text_graphs
from outpost_runtime.tensor.engine import TensorEngine
from outpost_runtime.tensor.request import SequenceStep
from outpost_runtime.tensors import Array
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.scoring import score

Figures = dict[str, float]

_SEQUENCE = "golden"


def check(model: Model) -> Figures:
    """Run a bundle's golden inputs through its opened model, which must not be serving.

    Returns:
        What was measured: ``agreement`` and ``perplexity``, or what the tolerances are for: see
            :func:`differences`.

    Raises:
        BundleError: The answers are further off than the bundle tolerates.
    """
    if isinstance(model, TextModel):
        return _check_decoder(model.decoder, model.bundle)
    evidence = model.bundle.manifest.evidence
    tensors = of_bundle(model.bundle)
    with _unusable():
        measured = _check_tensors(model.engine, tensors)
        asked = {name: measured[name] for name in evidence.tolerances}
        if not asked:
            raise ValueError("the manifest has no tolerance")
    for name, value in asked.items():
        _within(name, value, evidence.tolerances[name])
    return asked


def check_loaded_adapter(model: TextModel, name: str) -> Figures:
    """Run an adapter's golden inputs through the base that has it loaded and is not serving.

    Raises:
        NotFoundError: The base has no such adapter.
        BundleError: The answers are further off than the adapter tolerates.
    """
    shelved = model.adapters.get(name)
    return _check_decoder(model.decoder, shelved.bundle, shelved.adapter.index)


def check_adapter(adapter: Bundle, base: Bundle) -> Figures:
    """Run an adapter's golden inputs through its base's graph for adapters, opened for this.

    Args:
        adapter: Verified before, as ``base``.

    Raises:
        BundleError: The answers are further off than the adapter tolerates, or it is none
            of this base.
        UnavailableError: The base cannot be opened.
    """
    with opened_for_adapter(adapter, base) as decoder:
        return check_opened_adapter(decoder, adapter)


@contextmanager
def opened_for_adapter(
    adapter: Bundle, base: Bundle, settings: ModelSettings | None = None
) -> Iterator[Decoder]:
    """Open a base's graph for adapters with one adapter, which all of its rows have.

    Args:
        adapter: Verified before, as ``base``.
        settings: Of the base.

    Raises:
        BundleError: It is no adapter of this base.
        BusyError: The machine is short of memory or of files.
        UnavailableError: The base cannot be opened, which is no fault of the adapter.
    """
    interface = base.manifest.interface
    if not isinstance(interface, TextInterface) or interface.adapters is None:
        raise BundleError(f"The bundle '{base.manifest.name}' takes no adapters.")
    with _faults_of_base(adapter, base):
        graphs = text_graphs(base, interface, settings or ModelSettings())
    support, allocate = interface.adapters, graphs.allocate
    bank = AdapterBank(support, base=base.digest, capacity=1, allocate=allocate)
    index = bank.load(adapter)
    with ExitStack() as opened:
        with _faults_of_base(adapter, base):
            graph = graphs.open(support.model)
            opened.callback(graph.close)
            session = AdapterSession(graph, bank, everywhere=index)
            longest = interface.context_length
            decoder = Decoder(session, rows=1, max_length=longest, allocate=allocate)
        yield decoder


@contextmanager
def _faults_of_base(adapter: Bundle, base: Bundle) -> Iterator[None]:
    try:
        with as_errors_of_opening(base):
            yield
    except (BundleError, ExecutionError) as error:
        raise UnavailableError(
            f"The base of '{adapter.manifest.name}' cannot be opened: {error.message}"
        ) from error


def check_opened_adapter(decoder: Decoder, adapter: Bundle) -> Figures:
    """Run an adapter's golden inputs; see :func:`opened_for_adapter`.

    Raises:
        BundleError: The answers are further off than the adapter tolerates, or it ends the
            process that they are run in, if that is another one.
    """
    try:
        return _check_decoder(decoder, adapter)
    except UnavailableError as error:
        name = adapter.manifest.name
        raise BundleError(f"'{name}' cannot run its golden inputs: {error.message}") from error


def differences(
    pairs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
) -> Figures:
    """Say how far outputs are from expected ones, both by name, case by case.

    What is not floating point must be equal; if it is not, it is off by one, relatively, too.

    Returns:
        ``max_difference``, and ``relative_difference``: the largest difference of an output
        over the largest magnitude that is expected of it in any case. They are not a number
        if an output is not.

    Raises:
        ValueError: A case has other names, types or shapes than expected, or there is none.
    """
    absolute: dict[str, list[float]] = defaultdict(list)
    magnitude: dict[str, float] = defaultdict(float)
    for got, expected in pairs:
        if _described(got) != _described(expected):
            raise ValueError("the outputs have other names, types or shapes")
        for name, array in expected.items():
            absolute[name].append(_difference(got[name], array))
            magnitude[name] = max(magnitude[name], _largest(array))
    # numpy's maximum of anything with a NaN is NaN, which no limit admits; of nothing, an error
    largest = {name: float(np.max(values)) for name, values in absolute.items()}
    relative = [value / (magnitude[name] or 1.0) for name, value in largest.items()]
    return {
        "max_difference": float(np.max(list(largest.values()))),
        "relative_difference": float(np.max(relative)),
    }


@contextmanager
def _unusable() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, InvalidInputError) as error:
        raise BundleError(f"The golden inputs of the bundle are not usable: {error}.") from error


def _check_decoder(decoder: Decoder, bundle: Bundle, adapter: int | None = None) -> Figures:
    evidence = bundle.manifest.evidence
    tensors = of_bundle(bundle)
    with _unusable():
        measured = _check_text(decoder, tensors, adapter)
        wanted = evidence.figures["golden_perplexity"]
        change = abs(measured["perplexity"] / wanted - 1)
        _within("agreement", -measured["agreement"], -evidence.tolerances["agreement"])
        _within("perplexity_change", change, evidence.tolerances["perplexity_change"])
    return measured


def _check_text(decoder: Decoder, tensors: dict[str, Array], adapter: int | None) -> Figures:
    ids, top_tokens = tensors["input_ids"], tensors["top_tokens"]
    if not 1 < ids.size <= decoder.max_length or top_tokens.shape != (ids.size - 1,):
        raise ValueError(f"{ids.shape} tokens and {top_tokens.shape} answers do not fit")
    result = score(decoder, [int(token) for token in ids], adapter=adapter)
    agreement = result.agreement(top_tokens)
    return {"agreement": agreement, "perplexity": result.perplexity}


def _check_tensors(engine: TensorEngine, tensors: dict[str, Array]) -> Figures:
    inputs: dict[str, dict[str, Array]] = defaultdict(dict)
    outputs: dict[str, dict[str, Array]] = defaultdict(dict)
    for key, value in tensors.items():
        case, side, name = key.split("/", 2)
        {"inputs": inputs, "outputs": outputs}[side][case][name] = value
    shown = {spec.name for spec in engine.outputs}
    pairs = []
    for case in sorted(inputs, key=lambda case: (len(case), case)):  # numbers, in their order
        expected = {name: array for name, array in outputs[case].items() if name in shown}
        pairs.append((_answer(engine, inputs[case]), expected))
    return differences(pairs)


def _answer(engine: TensorEngine, inputs: dict[str, Array]) -> dict[str, Array]:
    feeds = {spec.name: inputs.pop(spec.name) for spec in engine.inputs}
    if inputs.keys() != {state.input for state in engine.shape.states}:
        raise ValueError(f"{', '.join(inputs) or 'nothing'} is not what the model carries")
    begins = not any(state.any() for state in inputs.values())
    return engine.submit(feeds, sequence=SequenceStep(id=_SEQUENCE, start=begins)).result()


def _described(outputs: Mapping[str, Array]) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape) for name, array in outputs.items()}


def _difference(got: Array, expected: Array) -> float:
    if not _is_float(expected):
        return 0.0 if np.array_equal(got, expected) else 1.0
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):  # two infinities: not a number, as it shall be
        return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max())


def _largest(array: Array) -> float:
    if not _is_float(array) or not array.size:
        return 0.0
    return float(np.abs(array.astype(np.float64)).max())


def _is_float(array: Array) -> bool:
    return array.dtype == ml_dtypes.bfloat16 or np.issubdtype(array.dtype, np.floating)


def _within(name: str, value: float, limit: float) -> None:
    # `not <=` and not `>`: a NaN must fail.
    if not value <= limit:
        raise BundleError(
            f"The golden inputs give other answers than where the bundle was built: "
            f"{name} is {abs(value):.6g}, allowed is {abs(limit):.6g}.",
            hint="Do not serve this bundle on this device; build one for its processor.",
        )
