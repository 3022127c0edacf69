"""What is served, by name: who answers to a request. :mod:`models` changes it."""

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from outpost_runtime.errors import (
    BundleError,
    BusyError,
    NotFoundError,
    OutpostError,
    StoreError,
    UnsupportedError,
)
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.opening import Model
from outpost_runtime.store import Store
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.model import TextModel

UNLOADED = "unloaded"
_OPENING_SECONDS = 2.0

ModelT = TypeVar("ModelT", bound=Model)


class State(enum.Enum):
    """What becomes of a name of the store."""

    LOADING = enum.auto()
    READY = enum.auto()
    UNLOADING = enum.auto()
    UNAVAILABLE = enum.auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One name of the store.

    Attributes:
        version: Empty where its bundle cannot be read.
        reason: Why it, or a newer version of it, is not served, for people; or empty.
    """

    name: str
    version: str
    state: State
    reason: str = ""


@dataclass(kw_only=True, slots=True, eq=False)
class Served:
    """An opened model, the memory that is set apart for it, and when it was asked last."""

    model: Model
    bytes: int
    used: float = field(default_factory=time.monotonic)


class ModelTable:
    """Opened models by name; may be read by any thread while one changes it.

    Args:
        store: Where they come from.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._served: dict[str, Served] = {}
        self._states: dict[str, tuple[State, str]] = {}
        self._between: set[str] = set()

    def __iter__(self) -> Iterator[Model]:
        return iter([served.model for served in list(self._served.values())])

    @property
    def complete(self) -> bool:
        """Whether nothing failed to load; what was unloaded is not missed."""
        return not any(
            reason and not reason.startswith(UNLOADED) for _, reason in list(self._states.values())
        )

    def is_between(self, name: str) -> bool:
        """Whether what had a name has made room for its successor, which is not open yet."""
        return name in self._between

    def get(self, name: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: None of that name is served.
        """
        if not name:
            raise NotFoundError("The request names no model.", hint=self._names())
        served = self._served.get(name)
        if served is None and self._states.get(name, (None, ""))[0] is State.LOADING:
            raise BusyError(
                f"The model '{name}' is being opened.",
                hint="Try again in a moment.",
                retry_after=_OPENING_SECONDS,
            )
        if served is None:
            raise NotFoundError(f"There is no model '{name}' here.", hint=self._names())
        return served.model

    def is_served(self, model: Model) -> bool:
        """Say whether a model that somebody got before is still what answers to its name."""
        served = self._served.get(model.bundle.manifest.name)
        return served is not None and served.model is model

    def touch(self, name: str) -> None:
        """Note that somebody uses a model: what has not been used longest makes room first."""
        served = self._served.get(name)
        if served is not None:
            served.used = time.monotonic()

    def find(self, name: str) -> tuple[Model, str]:
        """Return what answers to a name, an adapter's base for an adapter, and its version.

        Raises:
            NotFoundError: Nothing of that name is served.
        """
        base = None if name in self._served else self._base_of(name)
        if base is not None:
            return base, base.adapters.get(name).bundle.manifest.version
        model = self.get(name)
        return model, model.bundle.manifest.version

    def get_as(self, name: str, kind: type[ModelT], service: str) -> ModelT:
        """Return a model of one kind.

        Raises:
            NotFoundError: None of that name is served.
            UnsupportedError: It is of another kind.
        """
        model = self.get(name)
        self.touch(name)
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
        if name not in self._served and not adapter:
            base = self._base_of(name)
            if base is not None:
                self.touch(base.bundle.manifest.name)
                return base, base.adapters.get(name)
        model = self.get_as(name, TextModel, "text generation")
        return model, model.adapters.get(adapter) if adapter else None

    def index(self) -> list[Entry]:
        """Return every name of the store and what became of it."""
        return [self._entry(name) for name in self._store.names()]

    def _base_of(self, adapter: str) -> TextModel | None:
        bases = (model for model in self.texts() if adapter in model.adapters.names())
        return next(bases, None)

    def _is_adapter(self, name: str) -> bool:
        try:
            bundle = self._store.active(name)
        except OutpostError:
            return False
        return isinstance(bundle.manifest.interface, AdapterInterface)

    def _entry(self, name: str) -> Entry:
        state, reason = self._states.get(name, (State.UNAVAILABLE, UNLOADED))
        return Entry(name=name, version=self._version(name), state=state, reason=reason)

    def _version(self, name: str) -> str:
        served = self._served.get(name)
        if served is not None:
            return served.model.bundle.manifest.version
        try:
            return self._store.active(name).manifest.version
        except (NotFoundError, BundleError, StoreError):
            return ""

    def _names(self) -> str:
        return f"Models here: {', '.join(sorted(self._served)) or 'none'}."
