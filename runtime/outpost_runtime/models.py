"""What a server serves, by name: models come and go while others answer.

Opening and closing take seconds and happen on the caller's thread, one at a time; whoever
looks a model up meanwhile waits for nothing. Rules:

1. A bundle is verified and the memory for it set apart before anything is opened or closed for it.
2. A model that is replaced or unloaded answers what it has begun, for some time.
3. Where the memory does not suffice, idle models are unloaded first, if the policy says so,
   those that have been idle longest first; else the load is refused.
4. Where clients choose sizes that no interface limits, what a run takes is counted up from what was
   measured. What goes beyond the memory set apart is set apart, too, for as long as the model is
   there, since its provider keeps it; a request for which there is not enough is refused.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from outpost_runtime.budget import (
    RUN_BYTES,
    MemoryBudget,
    adapter_graph_bytes,
    expected_bytes,
    give_back_soon,
)
from outpost_runtime.bundle import Bundle, verify
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    InvalidInputError,
    NotFoundError,
    OutpostError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.footprint import Footprints, has_open_sizes
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.model_table import UNLOADED, ModelTable, Served, State
from outpost_runtime.opening import Model, ModelSettings, open_model
from outpost_runtime.priority import Precedence
from outpost_runtime.store import Store
from outpost_runtime.tensor.model import TensorModel
from outpost_runtime.text.model import TextModel

DRAIN_SECONDS = 30.0
"""How long answers of a model go on that is unloaded, or has to make room."""

LAST_ANSWERS_SECONDS = 600.0
"""The same of a model that has been replaced: it is in nobody's way but the memory's."""


_LOG = logging.getLogger(__name__)


class Models(ModelTable):
    """Opened models by name, loaded, replaced and unloaded.

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
        super().__init__(store)
        self._footprints = Footprints(store.folder / "measured")
        self.settings = settings
        self._budget = budget or MemoryBudget()
        self._evict = evict
        self._precedence = Precedence()
        self.unopened: dict[str, OutpostError] = {}
        self._retiring: dict[threading.Thread, Model] = {}
        self._changing = threading.RLock()
        self._closed = False

    def load_all(self) -> None:
        """Load every active bundle; one that fails is logged and does not stop the others.

        What failed and why stands in :attr:`unopened` afterwards.
        """
        names = sorted(self._store.names(), key=self._is_adapter)  # bases before their adapters
        for name in names:
            try:
                self.load(name)
            except OutpostError as error:
                self.unopened[name] = error
                _LOG.error("the model %s is not served: %s", name, error)

    def load(self, name: str) -> None:
        """Serve what is active in the store under a name; it replaces what was served before.

        Raises:
            NotFoundError: The store has no such name.
            BundleError: The bundle is damaged, or an adapter of a base that is not served.
            UnsupportedError: The bundle is for another runtime.
            BusyError: There is no memory, or no place for another adapter.
            UnavailableError: The server is stopping.
        """
        with self._changing:
            self._check_open()
            if name not in self._store.names():
                raise NotFoundError(
                    f"The store has no model '{name}'.", hint="Bring it with 'outpost add'."
                )
            self._states[name] = State.LOADING, ""
            try:
                self._load(name)
            except Exception as error:
                served = name in self._served or self._base_of(name)
                self._states[name] = State.READY if served else State.UNAVAILABLE, str(error)
                raise
            finally:
                self._between = set()
            self._states[name] = State.READY, ""

    def expected_bytes(self, name: str, bundle: Bundle, adapters: Sequence[str] = ()) -> int:
        """Return what a bundle is expected to need when it is served under a name."""
        settings = self.settings(name)
        second = adapter_graph_bytes(bundle, settings) if adapters else 0
        run_bytes = self._footprints.find(bundle.digest) or 0
        return expected_bytes(bundle, settings, run_bytes) + second

    @contextmanager
    def memory_for(self, purpose: str, needed: int) -> Iterator[None]:
        """Set bytes apart for what is opened for something else than serving.

        Raises:
            BusyError: There is not so much left.
        """
        self._budget.promise(purpose, needed)
        try:
            yield
        finally:
            self._budget.release(purpose)

    def replace(
        self,
        name: str,
        bundle: Bundle,
        adapters: Sequence[Bundle],
        accept: Callable[[Model], None],
    ) -> None:
        """Open a bundle beside what is served under its name, and serve it if it is accepted.

        Running answers of the one before end with it. Where the memory does not suffice for
        both, the one before goes first, and comes back if the new one is not accepted.

        Args:
            bundle: Not verified yet.
            adapters: Of this bundle, loaded before it is accepted.
            accept: Gets the opened model, which serves nobody; raises what is wrong with it.

        Raises:
            OutpostError: It cannot be opened, or what ``accept`` raises; what was served before is
                served still.
        """
        with self._changing:
            self._check_open()
            before = self._states.get(name)
            self._states[name] = State.LOADING, ""
            try:
                self._swap(name, bundle, adapters, accept)
            except BaseException:
                if self._states[name][0] is State.LOADING:  # else what was before is gone
                    del self._states[name]
                    if before is not None:
                        self._states[name] = before
                raise
            finally:
                self._between = set()
            self._states[name] = State.READY, ""
            for adapter in adapters:
                self._states[adapter.manifest.name] = State.READY, ""

    def unload(self, name: str) -> "Future[None]":
        """Stop serving a model or an adapter.

        Returns:
            A future that ends when the adapter's running answers have, which may take minutes:
            no thread has to wait for them. A model's are waited for here, for some time.

        Raises:
            NotFoundError: None of that name is served.
        """
        base = self._base_of(name)
        if base is not None:
            self._states[name] = State.UNLOADING, ""
            ended = base.adapters.unload(name)
            ended.add_done_callback(lambda _: self._mark_unloaded(name))
            return ended
        with self._changing:
            if name not in self._served:
                raise NotFoundError(f"There is no model '{name}' here.", hint=self._names())
            self._states[name] = State.UNLOADING, ""
            self._close(name)
            self._mark_unloaded(name)
        closed: Future[None] = Future()
        closed.set_result(None)
        return closed

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

    def unload_adapter(self, name: str) -> "Future[None]":
        """Unload an adapter when its running answers have ended; see :meth:`unload`.

        Raises:
            NotFoundError: None of that name is loaded.
        """
        if self._base_of(name) is None:
            raise NotFoundError(f"There is no adapter '{name}' loaded.")
        return self.unload(name)

    def close(self) -> None:
        """Close every model; nothing is loaded any more."""
        with self._changing:
            self._closed = True
            for name in list(self._served):
                self._close(name, drain_seconds=0)
            for thread, model in list(self._retiring.items()):
                if isinstance(model, TextModel):
                    model.engine.close()  # which ends its waiting for answers
                thread.join(DRAIN_SECONDS)

    def _load(self, name: str) -> None:
        bundle = self._store.active(name)
        if isinstance(bundle.manifest.interface, AdapterInterface):
            if not any(model.adapters.holds(bundle) for model in self.texts()):
                verify(bundle)
                self._load_adapter(bundle, bundle.manifest.interface)
            return
        before = self._served.get(name)
        if before is not None and before.model.bundle.digest == bundle.digest:
            return
        self._swap(name, bundle, (), lambda _: None)

    def _swap(
        self,
        name: str,
        bundle: Bundle,
        adapters: Sequence[Bundle],
        accept: Callable[[Model], None],
    ) -> None:
        before = self._served.get(name)
        hanging = _adapters_of(before.model) if before is not None else []
        settings = self.settings(name)
        known = self._footprints.find(bundle.digest)
        second = adapter_graph_bytes(bundle, settings) if adapters else 0
        needed = expected_bytes(bundle, settings, known or 0) + second
        self._make_room(name, needed)

        def account(run_bytes: int) -> None:
            nonlocal needed
            self._footprints.keep(bundle.digest, run_bytes)
            more = expected_bytes(bundle, settings, run_bytes) + second - needed
            if more > 0:
                self._make_room(name, more)
                needed += more

        try:
            verify(bundle)
            asked = account if known is None else None
            model = self._tried(bundle, settings, adapters, accept, asked)
        except BaseException:
            self._budget.release(name, needed)
            if before is not None and name not in self._served:  # it had made room
                self._restore(name, before.model.bundle, before.bytes, hanging)
            raise
        still = self._served.get(name)
        self._serve(name, Served(model=model, bytes=needed))
        if before is not None and still is before:
            self._mark_adapters(before.model)
            self._retire(name, before)

    def _retire(self, name: str, before: Served) -> None:
        """Let what has been replaced end its answers, which nobody else has to wait for."""

        def end() -> None:
            before.model.close(drain_seconds=LAST_ANSWERS_SECONDS)
            self._budget.release(name, before.bytes)
            self._retiring.pop(thread, None)
            give_back_soon()

        thread = threading.Thread(target=end, name=f"retiring {name}", daemon=True)
        self._retiring[thread] = before.model
        thread.start()

    def _tried(
        self,
        bundle: Bundle,
        settings: ModelSettings,
        adapters: Sequence[Bundle],
        accept: Callable[[Model], None],
        account: Callable[[int], None] | None,
    ) -> Model:
        model = open_model(bundle, settings, self._precedence, account)
        try:
            for adapter in adapters:
                _load_adapter_into(model, adapter)
            accept(model)
        except BaseException:
            model.close()
            raise
        return model

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("The server is stopping.")

    def _restore(self, name: str, bundle: Bundle, needed: int, adapters: Sequence[Bundle]) -> None:
        """Serve again what had made room; what cannot be is said, and nothing raised."""
        try:
            self._budget.promise(name, needed)
            model = open_model(bundle, self.settings(name), self._precedence)
            self._serve(name, Served(model=model, bytes=needed))
            self._states[name] = State.READY, ""
            for adapter in adapters:
                _load_adapter_into(model, adapter)
                self._states[adapter.manifest.name] = State.READY, ""
        except OutpostError as error:
            _LOG.error("%s cannot be served again: %s", name, error)
            if name not in self._served:
                self._budget.release(name)
                self._states[name] = State.UNAVAILABLE, str(error)

    def _serve(self, name: str, served: Served) -> None:
        model = served.model
        run_bytes = self._footprints.find(model.bundle.digest)
        if run_bytes and isinstance(model, TensorModel) and has_open_sizes(model.interface):
            model.engine.admit = self._admission(name, served, model, run_bytes)
        self._served[name] = served

    def _admission(
        self, name: str, served: Served, model: TensorModel, run_bytes: int
    ) -> Callable[[int], None]:
        """Return what refuses runs for which there is no memory (rule 4), by InvalidInputError."""
        concurrency, largest = model.engine.limits.concurrency, max(run_bytes, RUN_BYTES)

        def admit(numbers: int) -> None:  # called under the engine's lock, until it is closed
            nonlocal largest
            taken = run_bytes * numbers // model.measured_numbers
            if taken <= largest:
                return
            more = (taken - largest) * concurrency
            try:
                self._budget.promise(name, more)
            except BusyError as error:
                raise InvalidInputError(
                    f"A run of {numbers:,} numbers is expected to take {taken >> 20} MiB; "
                    f"of '{name}' a run may take {largest >> 20} MiB, and of the memory for models "
                    f"{max(self._budget.free, 0) >> 20} MiB are left.",
                    hint="Send smaller inputs, or allow more with --memory.",
                ) from error
            served.bytes += more
            largest = taken

        return admit

    def _make_room(self, name: str, needed: int, *, kept: str | None = None) -> None:
        """Set memory apart, if need be by unloading what may go; ``kept`` must not."""
        going = sum(self._served[n].bytes for n in self._going(name, kept))
        if needed > self._budget.free + going:  # nothing is closed for what cannot come
            self._budget.promise(name, needed)
        while True:
            try:
                self._budget.promise(name, needed)
            except BusyError:
                going_now = self._going(name, kept)
                if not going_now:
                    raise
                self._let_go(going_now[0], name)
            else:
                return

    def _going(self, name: str, kept: str | None) -> list[str]:
        """Return what may be unloaded for a name: what it replaces, then the longest idle."""
        replaced = [name] if name in self._served and name != kept else []
        idle = [(s.used, n) for n, s in self._served.items() if self._may_go(s)]
        return replaced + [n for _, n in sorted(idle) if n not in (name, kept)]

    def _let_go(self, going: str, name: str) -> None:
        if going == name:
            _LOG.warning("no memory for two of %s: the old one goes before the new one comes", name)
            adapters = _adapters_of(self._served[name].model)
            self._between = {name, *(adapter.manifest.name for adapter in adapters)}
            self._close(name)
            return
        _LOG.info("unloading %s, which is idle, to make room for %s", going, name)
        self._close(going)
        self._states[going] = State.UNAVAILABLE, f"{UNLOADED} to make room for '{name}'"

    def _may_go(self, served: Served) -> bool:
        return self._evict and not served.model.engine.busy

    def _close(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        served = self._served.pop(name)
        self._mark_adapters(served.model)
        served.model.close(drain_seconds=drain_seconds)
        self._budget.release(name, served.bytes)
        del served
        give_back_soon()

    def _mark_unloaded(self, name: str) -> None:
        if self._states[name][0] is State.UNLOADING:  # or it has been loaded again meanwhile
            self._states[name] = State.UNAVAILABLE, UNLOADED

    def _mark_adapters(self, base: Model) -> None:
        if isinstance(base, TextModel):
            for name in base.adapters.names():
                reason = f"{UNLOADED} with '{base.bundle.manifest.name}'"
                self._states[name] = State.UNAVAILABLE, reason

    def _load_adapter(self, bundle: Bundle, interface: AdapterInterface) -> None:
        for model in self.texts():
            if model.bundle.digest == interface.base:
                self._load_onto(model, bundle)
                return
        raise BundleError(
            f"The adapter '{bundle.manifest.name}' belongs to '{interface.base_name}' "
            f"({interface.base[:12]}), which is not served here.",
            hint="Serve its base, or build the adapter for the base that is served.",
        )

    def _load_onto(self, model: TextModel, bundle: Bundle) -> None:
        """Load an adapter; the first one opens its base's second graph, and needs room for it."""
        if model.adapters.is_open:
            model.load_adapter(bundle)
            return
        name = model.bundle.manifest.name
        needed = adapter_graph_bytes(model.bundle, self.settings(name))
        self._make_room(name, needed, kept=name)
        try:
            model.load_adapter(bundle)
        finally:
            if model.adapters.is_open:
                self._served[name].bytes += needed
            else:
                self._budget.release(name, needed)


def _adapters_of(model: Model) -> list[Bundle]:
    if not isinstance(model, TextModel):
        return []
    return [model.adapters.get(name).bundle for name in model.adapters.names()]


def _load_adapter_into(model: Model, adapter: Bundle) -> None:
    verify(adapter)
    if not isinstance(model, TextModel):
        raise UnsupportedError(f"'{model.bundle.manifest.name}' takes no adapters.")
    model.load_adapter(adapter)


def names_of(models: Iterable[Model]) -> str:
    """Return the names of models for a message."""
    return ", ".join(sorted(model.bundle.manifest.name for model in models))
