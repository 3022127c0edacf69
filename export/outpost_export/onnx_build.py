"""From an ONNX file to a measured model: it is shipped as it is, with its signature read."""

from collections.abc import Sequence
from pathlib import Path

from outpost_runtime.errors import BundleError
from outpost_runtime.interface import TensorInterface
from outpost_runtime.sessions import Session
from outpost_runtime.sessions.ort import OrtSession

from outpost_export import onnx_evidence as evidence
from outpost_export.errors import ConversionError, RecipeError
from outpost_export.onnx_batches import Batches, try_batches, why_never
from outpost_export.onnx_inputs import CASES, Feeds, make_inputs, read_inputs
from outpost_export.onnx_source import OnnxSource
from outpost_export.onnx_states import check_states, steps, with_zeros
from outpost_export.progress import Reporter
from outpost_export.recipe import Recipe
from outpost_export.result import Built

_MODEL = "model.onnx"
_MAX_BATCH = 32


def build_onnx(
    source: OnnxSource, recipe: Recipe, inputs: Path | None, out: Path, reporter: Reporter
) -> Built:
    """Write the model into ``out`` and measure it.

    Args:
        inputs: What to measure it on, or None: inputs are made up for its signature.

    Raises:
        RecipeError: The recipe or the inputs do not fit the model.
        ConversionError: The runtime cannot open it, or it answers no input.
        EvidenceError: Its answers cannot be reproduced.
    """
    with reporter.step("Opening the model"):
        source.write(out)
        served, as_written = _open(out), _open(out, as_written=True)
    check_states(recipe.states, served.inputs, served.outputs)
    _check_labels(recipe, served)
    with reporter.step("Looking for inputs"):
        cases = _cases(source, recipe, inputs, served)
    figures, golden = evidence.measure(served, as_written, cases, reporter)
    with reporter.step("Trying runs of several"):
        batches = _batches(source, recipe, served, cases)
    if batches.difference is not None:
        figures["batch_difference"] = batches.difference
    interface = TensorInterface(
        model=_MODEL,
        tokenizer=None,
        max_batch=batches.most,
        max_sequence=None,
        labels=recipe.labels,
        inputs=served.inputs,
        outputs=served.outputs,
        states=recipe.states,
    )
    return Built(
        interface=interface,
        figures=figures,
        golden=golden,
        tolerances={"relative_difference": recipe.thresholds["relative_difference"]},
        memory_bytes=sum(path.stat().st_size for path in out.glob(f"{_MODEL}*")),
        notes=_notes(batches),
    )


def _open(folder: Path, *, as_written: bool = False) -> OrtSession:
    try:
        return OrtSession(folder / _MODEL, as_written=as_written)
    except BundleError as error:
        reason = error.message.rpartition("failed:")[2]  # before it stand paths of this build
        raise ConversionError(
            f"The runtime cannot run this model: {reason}",
            hint="It takes tensors, and the operators of ONNX and of ONNX Runtime's CPU build.",
        ) from error


def _check_labels(recipe: Recipe, session: Session) -> None:
    count = len(recipe.labels)
    if count and not any(spec.shape[-1:] in ((count,), (None,)) for spec in session.outputs):
        raise RecipeError(
            f"There are {count} labels, and no output of the model gives as many values.",
            hint=f"Its outputs: {'; '.join(map(str, session.outputs))}.",
        )


def _cases(
    source: OnnxSource, recipe: Recipe, inputs: Path | None, session: Session
) -> Sequence[Feeds]:
    states = frozenset(state.input for state in recipe.states)
    specs = tuple(spec for spec in session.inputs if spec.name not in states)
    if inputs is not None:
        cases = read_inputs(inputs, specs)
    else:
        cases = make_inputs(
            specs,
            source.sizes,
            recipe.dimensions,
            lambda feeds: session.run(with_zeros(feeds, recipe.states, session.inputs)),
            most_sizes=1 if states else CASES,
        )
    return steps(session, cases, recipe.states) if states else cases


def _batches(
    source: OnnxSource, recipe: Recipe, session: Session, cases: Sequence[Feeds]
) -> Batches:
    if recipe.max_batch == 0:
        return Batches(most=0, reason="the recipe says so")
    reason = why_never(session, source.sizes, stateful=bool(recipe.states))
    if reason is not None:
        return Batches(most=0, reason=reason)
    most = _MAX_BATCH if recipe.max_batch is None else recipe.max_batch
    return try_batches(session, cases, most=most, limit=recipe.thresholds["relative_difference"])


def _notes(batches: Batches) -> tuple[str, ...]:
    if batches.reason is None:
        return (f"requests share runs of up to {batches.most} rows",)
    return (f"requests do not share runs: {batches.reason}",)
