"""What a server serves, by name: models come and go while others answer.

Opening and closing take seconds and happen on the caller's thread, one at a time; whoever
looks a model up meanwhile waits for nothing. Rules:

1. A bundle is verified before it is opened, and the memory for it is set apart before that.
2. A model that is replaced or unloaded answers what it has begun, for some time.
3. Where the memory does not suffice, idle models are unloaded first, if the policy says so,
   those that have been idle longest first; else the load is refused.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from outpost_runtime.budget import MemoryBudget, expected_bytes, give_back_soon
from outpost_runtime.bundle import Bundle, verify
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    NotFoundError,
    OutpostError,
    StoreError,
    UnsupportedError,
)
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.opening import Model, ModelSettings, open_model
from outpost_runtime.priority import Precedence
from outpost_runtime.store import Store
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.model import TextModel

DRAIN_SECONDS = 30.0

_LOG = logging.getLogger(__name__)

_UNLOADED = "unloaded"

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
class _Served:
    model: Model
    bytes: int
    used: float = field(default_factory=time.monotonic)


class Models:
    """Opened models by name.

    Args:
        store: Where bundles are loaded from.
        settings: How a model is opened, by its name.
        budget: Memory of all models together.
        evict: Unload idle models where the memory does not suffice for another one.
    """

    def __init__(
        self,
        store: Store,
        settings: Callable[[str], ModelSettings] = lambda _: ModelSettings(),
        *,
        budget: MemoryBudget | None = None,
        evict: bool = False,
    ) -> None:
        self._store = store
        self._settings = settings
        self._budget = budget or MemoryBudget()
        self._evict = evict
        self._precedence = Precedence()
        self._served: dict[str, _Served] = {}
        self._states: dict[str, tuple[State, str]] = {}
        self._changing = threading.RLock()

    def __iter__(self) -> Iterator[Model]:
        return iter([served.model for served in list(self._served.values())])

    @property
    def complete(self) -> bool:
        """Whether nothing failed to load; what was unloaded is not missed."""
        return not any(
            reason and not reason.startswith(_UNLOADED) for _, reason in list(self._states.values())
        )

    def get(self, name: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: None of that name is served.
        """
        if not name:
            raise NotFoundError("The request names no model.", hint=self._names())
        served = self._served.get(name)
        if served is None:
            raise NotFoundError(f"There is no model '{name}' here.", hint=self._names())
        served.used = time.monotonic()
        return served.model

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
        if name not in self._served and not adapter:
            base = self._base_of(name)
            if base is not None:
                return base, base.adapters.get(name)
        model = self.get_as(name, TextModel, "text generation")
        return model, model.adapters.get(adapter) if adapter else None

    def index(self) -> list[Entry]:
        """Return every name of the store and what became of it."""
        return [self._entry(name) for name in self._store.names()]

    def load_all(self) -> None:
        """Load every active bundle; one that fails is logged and does not stop the others."""
        names = sorted(self._store.names(), key=self._is_adapter)  # bases before their adapters
        for name in names:
            try:
                self.load(name)
            except OutpostError as error:
                _LOG.error("the model %s is not served: %s", name, error)

    def load(self, name: str) -> None:
        """Serve what is active in the store under a name; it replaces what was served before.

        Raises:
            NotFoundError: The store has no such name.
            BundleError: The bundle is damaged, or an adapter of a base that is not served.
            UnsupportedError: The bundle is for another runtime.
            BusyError: There is no memory, or no place for another adapter.
        """
        with self._changing:
            if name not in self._store.names():
                raise NotFoundError(
                    f"The store has no model '{name}'.", hint="Bring it with 'outpost add'."
                )
            self._states[name] = State.LOADING, ""
            try:
                self._load(name)
            except OutpostError as error:
                served = name in self._served or self._base_of(name)
                self._states[name] = State.READY if served else State.UNAVAILABLE, str(error)
                raise
            self._states[name] = State.READY, ""

    def unload(self, name: str) -> None:
        """Stop serving a model or an adapter; what it has begun is answered for some time.

        Raises:
            NotFoundError: None of that name is served.
        """
        base = self._base_of(name)
        if base is not None:  # its answers may take minutes, which nobody else has to wait for
            base.adapters.unload(name)
            self._states[name] = State.UNAVAILABLE, _UNLOADED
            return
        with self._changing:
            if name not in self._served:
                raise NotFoundError(f"There is no model '{name}' here.", hint=self._names())
            self._states[name] = State.UNLOADING, ""
            self._close(name)
            self._states[name] = State.UNAVAILABLE, _UNLOADED

    def load_adapter(self, name: str) -> TextModel:
        """Load the adapter that is active in the store under a name; returns its base.

        Raises:
            NotFoundError: The store has no such adapter.
            BundleError: Its base is not served, or its files are not what they should be.
            BusyError: The base has no room for another one.
        """
        if name not in self._store.names():
            raise NotFoundError(
                f"The store has no adapter '{name}'.", hint="Bring it with 'outpost add'."
            )
        if not self._is_adapter(name):
            raise NotFoundError(f"'{name}' in the store is no adapter.")
        self.load(name)
        base = self._base_of(name)
        assert base is not None  # noqa: S101 - it was loaded
        return base

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter when its running answers have ended.

        Raises:
            NotFoundError: None of that name is loaded.
        """
        if self._base_of(name) is None:
            raise NotFoundError(f"There is no adapter '{name}' loaded.")
        self.unload(name)

    def close(self) -> None:
        """Close every model."""
        with self._changing:
            for name in list(self._served):
                self._close(name, drain_seconds=0)

    def _load(self, name: str) -> None:
        bundle = self._store.bundle(self._store.slot(name).active)
        if isinstance(bundle.manifest.interface, AdapterInterface):
            verify(bundle)
            self._load_adapter(bundle, bundle.manifest.interface)
            return
        before = self._served.get(name)
        if before is not None and before.model.bundle.digest == bundle.digest:
            return
        settings = self._settings(name)
        needed = expected_bytes(bundle, settings)
        self._make_room(name, needed)
        try:
            verify(bundle)
            model = open_model(bundle, settings, self._precedence)
        except BaseException:
            self._budget.release(name, needed)
            raise
        before = self._served.get(name)
        self._served[name] = _Served(model=model, bytes=needed)
        if before is not None:
            before.model.close(drain_seconds=DRAIN_SECONDS)
            self._budget.release(name, before.bytes)
            give_back_soon()

    def _make_room(self, name: str, needed: int) -> None:
        while True:
            try:
                self._budget.promise(name, needed)
            except BusyError:
                if not self._evict_one(name):
                    raise
            else:
                return

    def _evict_one(self, name: str) -> bool:
        """Unload a model to make room; the one that is being replaced goes first."""
        if name in self._served:
            _LOG.warning("no memory for two of %s: the old one goes before the new one comes", name)
            self._close(name)
            return True
        idle = [(s.used, n) for n, s in self._served.items() if not s.model.engine.busy]
        if not self._evict or not idle:
            return False
        _, oldest = min(idle)
        _LOG.info("unloading %s, which is idle, to make room for %s", oldest, name)
        self._close(oldest)
        self._states[oldest] = State.UNAVAILABLE, f"{_UNLOADED} to make room for '{name}'"
        return True

    def _close(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        served = self._served.pop(name)
        served.model.close(drain_seconds=drain_seconds)
        self._budget.release(name)
        del served
        give_back_soon()

    def _load_adapter(self, bundle: Bundle, interface: AdapterInterface) -> None:
        for model in self.texts():
            if model.bundle.digest == interface.base:
                model.load_adapter(bundle)
                return
        raise BundleError(
            f"The adapter '{bundle.manifest.name}' belongs to '{interface.base_name}' "
            f"({interface.base[:12]}), which is not served here.",
            hint="Serve its base, or build the adapter for the base that is served.",
        )

    def _base_of(self, adapter: str) -> TextModel | None:
        bases = (model for model in self.texts() if adapter in model.adapters.names())
        return next(bases, None)

    def _is_adapter(self, name: str) -> bool:
        try:
            bundle = self._store.bundle(self._store.slot(name).active)
        except OutpostError:
            return False
        return isinstance(bundle.manifest.interface, AdapterInterface)

    def _entry(self, name: str) -> Entry:
        state, reason = self._states.get(name, (State.UNAVAILABLE, _UNLOADED))
        return Entry(name=name, version=self._version(name), state=state, reason=reason)

    def _version(self, name: str) -> str:
        served = self._served.get(name)
        if served is not None:
            return served.model.bundle.manifest.version
        try:
            return self._store.bundle(self._store.slot(name).active).manifest.version
        except (NotFoundError, BundleError, StoreError):
            return ""

    def _names(self) -> str:
        return f"Models here: {', '.join(sorted(self._served)) or 'none'}."


def names_of(models: Iterable[Model]) -> str:
    """Return the names of models for a message."""
    return ", ".join(sorted(model.bundle.manifest.name for model in models))
