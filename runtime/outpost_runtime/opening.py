"""From a bundle to an opened model."""

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from outpost_runtime import golden_file
from outpost_runtime.bundle import Bundle, check_runnable
from outpost_runtime.embeddings import EmbeddingModel
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    ConfigurationError,
    ExecutionError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.footprint import measure_run, measured_numbers
from outpost_runtime.interface import (
    AdapterInterface,
    EmbeddingInterface,
    SystemInterface,
    TensorInterface,
    TextInterface,
)
from outpost_runtime.priority import Precedence
from outpost_runtime.sessions import Session
from outpost_runtime.sessions.bound_memory import BoundMemory
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.sessions.pool import SessionPool, open_pool
from outpost_runtime.sessions.process import ProcessSession
from outpost_runtime.tensor.engine import TensorLimits
from outpost_runtime.tensor.model import TensorModel
from outpost_runtime.tensors import Allocate, Array
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.token_table import token_rows, with_table

_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SMALL_BYTES = 8 << 20

Model = TextModel | EmbeddingModel | TensorModel
Account = Callable[[int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """How a model is opened.

    Attributes:
        threads: Threads of one run; None takes one for a small model (below 8 MiB), else the
            physical cores.
        apart: Run it in a process of its own, so that a crash ends nothing else; in as many as
            it may run at the same time, and a text model's graph for adapters in another one.
        text: What it may take of the machine if it generates text.
        tensor: The same of any other model.
    """

    threads: int | None = None
    apart: bool = False
    text: TextLimits = field(default_factory=TextLimits)
    tensor: TensorLimits = field(default_factory=TensorLimits)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(
                "A run needs at least one thread.", hint="Ask for one or more, or for no number."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextGraphs:
    """How the graphs of a bundle that generates text are opened.

    Attributes:
        open: Opens one by the name of its file; whoever does closes it.
        allocate: Of what is bound to their sessions.
    """

    open: Callable[[str], Session]
    allocate: Allocate = np.zeros


def open_model(
    bundle: Bundle,
    settings: ModelSettings | None = None,
    precedence: Precedence | None = None,
    account: Account | None = None,
) -> Model:
    """Open a bundle.

    Args:
        bundle: Verified before.
        precedence: What its engine knows of other models' engines.
        account: Is told how many bytes one run takes at most, as measured, before the model is
            given out, and may refuse it by an error; text models know it without. None is that
            nobody wants it measured.

    Raises:
        BundleError: The bundle's files are not what they should be.
        UnsupportedError: The bundle's target is not for this runtime.
    """
    check_runnable(bundle)
    with as_errors_of_opening(bundle):
        return _open(bundle, settings or ModelSettings(), precedence or Precedence(), account)


@contextmanager
def as_errors_of_opening(bundle: Bundle) -> Iterator[None]:
    """Let what goes wrong while a bundle is opened end as an error of ours.

    Raises:
        BusyError: The machine is short of memory or of files.
        BundleError: Anything else is wrong with the files.
    """
    name = bundle.manifest.name
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _SHORT_OF:
            raise BundleError(f"'{name}' cannot be opened: {error}.") from error
        raise BusyError(
            f"This machine is too short of memory or files to open '{name}'."
        ) from error
    except ValueError as error:  # of numpy and of damaged files
        raise BundleError(f"'{name}' cannot be opened: {error}.") from error


def _open(
    bundle: Bundle, settings: ModelSettings, precedence: Precedence, account: Account | None
) -> Model:
    interface = bundle.manifest.interface
    if isinstance(interface, AdapterInterface | SystemInterface):
        raise _cannot_be_opened(bundle, interface)

    if isinstance(interface, TextInterface):
        return _warmed(_text_model(bundle, interface, settings, precedence))
    session = _session(bundle, interface.model, settings)
    try:
        _check_signature(bundle, interface, session)
        feeds = _warm_up(bundle, interface, session, account)
        if isinstance(interface, EmbeddingInterface):
            return EmbeddingModel(bundle, interface, session, settings.tensor, precedence)
        measured = measured_numbers(interface, feeds)
        return TensorModel(bundle, interface, session, settings.tensor, precedence, measured)
    except BaseException:
        session.close()  # or its process would go on, and be started again
        raise


def _session(bundle: Bundle, graph: str, settings: ModelSettings) -> Session:
    source, threads = graph_of(bundle, graph), settings.threads or _threads(bundle)
    if not settings.apart:
        return OrtSession(source, threads=threads)
    count = settings.tensor.concurrency
    return open_pool(lambda: ProcessSession(source, threads=threads), count)


def weight_bytes(bundle: Bundle) -> int:
    """Return the size of a bundle's graphs and their weights."""
    return sum(entry.size for name, entry in bundle.manifest.files.items() if ".onnx" in name)


def text_graphs(bundle: Bundle, interface: TextInterface, settings: ModelSettings) -> TextGraphs:
    """Return how the graphs of a bundle that generates text are opened."""
    threads = settings.threads or _threads(bundle)
    rows = token_rows(bundle.contents, interface.token_table)

    def here(graph: str) -> Session:
        return with_table(OrtSession(graph_of(bundle, graph), threads=threads), rows)

    if not settings.apart:
        return TextGraphs(open=here)
    memory = BoundMemory()  # of the plain graph's process and that of the graph for adapters

    def apart(graph: str) -> Session:
        session = ProcessSession(graph_of(bundle, graph), threads=threads, memory=memory)
        return with_table(session, rows)

    return TextGraphs(open=apart, allocate=memory.zeros)


def _text_model(
    bundle: Bundle, interface: TextInterface, settings: ModelSettings, precedence: Precedence
) -> TextModel:
    graphs = text_graphs(bundle, interface, settings)
    return TextModel(bundle, interface, graphs.open, settings.text, precedence, graphs.allocate)


def _cannot_be_opened(
    bundle: Bundle, interface: AdapterInterface | SystemInterface
) -> UnsupportedError:
    name = bundle.manifest.name
    if isinstance(interface, SystemInterface):
        return UnsupportedError(f"'{name}' is a system for boxes and cannot be served.")
    return UnsupportedError(
        f"'{name}' is an adapter of '{interface.base_name}' and cannot be opened alone.",
        hint="It is opened with its base.",
    )


def _warmed(model: TextModel) -> TextModel:
    try:
        model.engine.warm_up()
    except UnavailableError as error:  # its process has ended: as in `_warm_up`
        model.close()
        name = model.bundle.manifest.name
        raise BundleError(f"'{name}' cannot run: {error.message}") from error
    except BaseException:
        model.close()
        raise
    return model


def _warm_up(
    bundle: Bundle,
    interface: EmbeddingInterface | TensorInterface,
    session: Session,
    account: Account | None,
) -> dict[str, Array]:
    """Run the largest golden inputs once: memory is taken, pages are touched before anybody waits.

    Returns:
        These inputs.

    Raises:
        BundleError: The model cannot run them.
    """
    tensors = golden_file.of_bundle(bundle)
    sizes: dict[str, int] = defaultdict(int)
    for key in sorted(tensors):  # the order of a file's tensors is nobody's promise
        case, inputs, _ = key.partition("/inputs/")
        if inputs:
            sizes[case] += tensors[key].size
    largest = max(sizes, key=sizes.__getitem__, default="")
    found = {s.name: tensors.get(f"{largest}/inputs/{s.name}") for s in session.inputs}
    feeds = {name: array for name, array in found.items() if array is not None}
    try:
        if account is None:
            session.run(feeds)
        else:
            account(measure_run(interface, feeds, session.run, _process_of(session)))
    except (InvalidInputError, ExecutionError, UnavailableError) as error:
        raise BundleError(
            f"'{bundle.manifest.name}' cannot run its own golden inputs: {error.message}"
        ) from error
    return feeds


def _process_of(session: Session) -> int:
    apart = session.process_id if isinstance(session, SessionPool) else None
    return apart or os.getpid()


def _threads(bundle: Bundle) -> int | None:
    # Threads that wait for their share of a run spin: a small model's takes twice the processor
    # time with two of them, and no less of the clock's.
    return 1 if weight_bytes(bundle) < _SMALL_BYTES else None


def _check_signature(
    bundle: Bundle, interface: EmbeddingInterface | TensorInterface, session: Session
) -> None:
    if (session.inputs, session.outputs) != (interface.inputs, interface.outputs):
        raise BundleError(
            f"The model of '{bundle.manifest.name}' has other inputs or outputs than its manifest."
        )
