"""The opened models of a server, by name."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from outpost_runtime.bundle import Bundle, check_runnable, verify
from outpost_runtime.embeddings import EmbeddingModel
from outpost_runtime.errors import BundleError, NotFoundError, OutpostError, UnsupportedError
from outpost_runtime.interface import (
    AdapterInterface,
    EmbeddingInterface,
    TensorInterface,
    TextInterface,
)
from outpost_runtime.sessions import Session
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.store import Store
from outpost_runtime.tensor_engine import TensorEngine
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.model import TextModel

_LOG = logging.getLogger(__name__)


class TensorModel:
    """What serves one bundle of any other kind."""

    def __init__(self, bundle: Bundle, interface: TensorInterface, session: Session) -> None:
        self.bundle = bundle
        self.interface = interface
        self.engine = TensorEngine(
            session, max_batch=interface.max_batch, max_sequence=interface.max_sequence
        )

    def close(self) -> None:
        """Free the model."""
        self.engine.close()


Model = TextModel | EmbeddingModel | TensorModel
ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An active bundle that could not be opened."""

    name: str
    error: OutpostError


class Models:
    """Opened models by name.

    Args:
        models: What is served.
        failures: What should be served and is not.
        store: Where adapters are loaded from.
    """

    def __init__(
        self,
        models: Iterable[Model],
        failures: Iterable[Failure] = (),
        *,
        store: Store | None = None,
    ) -> None:
        self._models = {model.bundle.manifest.name: model for model in models}
        self._store = store
        self.failures = tuple(failures)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: None of that name is served.
        """
        if not name:
            raise NotFoundError("The request names no model.", hint=self._names())
        if name not in self._models:
            raise NotFoundError(f"There is no model '{name}' here.", hint=self._names())
        return self._models[name]

    def get_as(self, name: str, kind: type[ModelT], service: str) -> ModelT:
        """Return a model of one kind.

        Raises:
            NotFoundError: None of that name is served.
            UnsupportedError: It is of another kind.
        """
        model = self.get(name)
        if not isinstance(model, kind):
            task = model.bundle.manifest.task
            raise UnsupportedError(f"The model '{name}' does {task}; {service} cannot use it.")
        return model

    def texts(self) -> list[TextModel]:
        """Return the text models."""
        return [model for model in self if isinstance(model, TextModel)]

    def text(self, name: str, adapter: str) -> tuple[TextModel, ShelvedAdapter | None]:
        """Return what answers a text request.

        Args:
            name: A text model, or one of the loaded adapters, which then need not be named again.
            adapter: A loaded adapter of it, or the empty string.

        Raises:
            NotFoundError: There is no such model, or the adapter is not loaded.
            UnsupportedError: The model does not generate text.
        """
        if name not in self._models and not adapter:
            for model in self.texts():
                if name in model.adapters.names():
                    return model, model.adapters.get(name)
        model = self.get_as(name, TextModel, "text generation")
        return model, model.adapters.get(adapter) if adapter else None

    def load_adapter(self, name: str) -> TextModel:
        """Load the adapter that is active in the store under a name; returns its base.

        Raises:
            NotFoundError: The store has no such adapter.
            BundleError: Its base is not served, or its files are not what they should be.
            BusyError: The base has no room for another one.
        """
        if self._store is None or name not in self._store.names():
            raise NotFoundError(
                f"The store has no adapter '{name}'.", hint="Bring it with 'outpost add'."
            )
        bundle = self._store.bundle(self._store.slot(name).active)
        verify(bundle)
        interface = bundle.manifest.interface
        if not isinstance(interface, AdapterInterface):
            raise NotFoundError(f"'{name}' in the store is no adapter.")
        for model in self.texts():
            if model.bundle.digest == interface.base:
                model.load_adapter(bundle)
                return model
        raise BundleError(
            f"The adapter '{name}' belongs to '{interface.base_name}' ({interface.base[:12]}), "
            "which is not served here.",
            hint="Serve its base, or build the adapter for the base that is served.",
        )

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter when its running answers have ended.

        Raises:
            NotFoundError: None of that name is loaded.
        """
        for model in self.texts():
            if name in model.adapters.names():
                model.adapters.unload(name)
                return
        raise NotFoundError(f"There is no adapter '{name}' loaded.")

    def close(self) -> None:
        """Close every model."""
        for model in self._models.values():
            model.close()

    def _names(self) -> str:
        return f"Models here: {', '.join(sorted(self._models)) or 'none'}."


def open_model(
    bundle: Bundle, *, threads: int | None = None, limits: TextLimits | None = None
) -> Model:
    """Open a bundle.

    Args:
        bundle: Verified before.
        threads: Threads of one run; None takes the physical cores.
        limits: What a text model may take; None is the defaults.

    Raises:
        BundleError: The bundle's files are not what they should be.
        UnsupportedError: The bundle's target is not for this runtime.
    """
    check_runnable(bundle)
    try:
        return _open(bundle, threads, limits or TextLimits())
    except (OSError, ValueError, MemoryError) as error:  # of numpy and of damaged files
        raise BundleError(f"'{bundle.manifest.name}' cannot be opened: {error}.") from error


def _open(bundle: Bundle, threads: int | None, limits: TextLimits) -> Model:
    interface = bundle.manifest.interface
    if isinstance(interface, AdapterInterface):
        raise UnsupportedError(
            f"'{bundle.manifest.name}' is an adapter of '{interface.base_name}' "
            "and cannot be opened alone.",
            hint="It is opened with its base.",
        )

    def open_session(graph: str) -> Session:
        return OrtSession(bundle.path(graph), threads=threads)

    if isinstance(interface, TextInterface):
        return TextModel(bundle, interface, open_session, limits)
    session = open_session(interface.model)
    if (session.inputs, session.outputs) != (interface.inputs, interface.outputs):
        raise BundleError(
            f"The model of '{bundle.manifest.name}' has other inputs or outputs than its manifest."
        )
    if isinstance(interface, EmbeddingInterface):
        return EmbeddingModel(bundle, interface, session)
    return TensorModel(bundle, interface, session)


def open_active(
    store: Store, *, threads: int | None = None, limits: TextLimits | None = None
) -> Models:
    """Verify and open every active bundle of a store; one that fails does not stop the others."""
    opened: list[Model] = []
    failures: list[Failure] = []
    adapters: list[str] = []
    for name in store.names():
        with _noting(name, failures):
            bundle = store.bundle(store.slot(name).active)
            if isinstance(bundle.manifest.interface, AdapterInterface):
                adapters.append(name)
                continue
            verify(bundle)
            opened.append(open_model(bundle, threads=threads, limits=limits))
    models = Models(opened, store=store)
    for name in adapters:  # their bases are there now
        with _noting(name, failures):
            models.load_adapter(name)
    models.failures = tuple(failures)
    return models


@contextmanager
def _noting(name: str, failures: list[Failure]) -> Iterator[None]:
    try:
        yield
    except OutpostError as error:
        _LOG.error("the model %s is not served: %s", name, error)
        failures.append(Failure(name=name, error=error))
