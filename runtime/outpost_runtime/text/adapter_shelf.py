"""The adapters that a served base has loaded, by name; they come and go while it answers.

Reading and checking happen on the caller's thread, so that nobody's tokens wait for a
disk; what is left for the engine's thread, between two runs, is a copy into memory.
The base's second graph is opened with the first adapter.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import InvalidInputError, NotFoundError, UnsupportedError
from outpost_runtime.interface import AdapterInterface, AdapterSupport
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Allocate
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
from outpost_runtime.text.chat import ChatTemplate
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.request import Adapter, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class ShelvedAdapter:
    """A loaded adapter and what it brings; None means "as the base has it"."""

    adapter: Adapter
    bundle: Bundle
    template: ChatTemplate | None
    sampling: Sampling | None


class AdapterShelf:
    """Loads and unloads the adapters of one base.

    Args:
        base: The base's bundle.
        support: How it takes adapters, or None if it takes none.
        open_graph: Opens the base's graph for adapters; called once, with the first of them.
        capacity: Adapters that can be loaded at once.
        allocate: Of the stacks of weights.
    """

    def __init__(
        self,
        base: Bundle,
        support: AdapterSupport | None,
        engine: TextEngine,
        decoder: Decoder,
        open_graph: Callable[[], Session],
        *,
        capacity: int,
        allocate: Allocate = np.zeros,
    ) -> None:
        self._base = base
        self._engine = engine
        self._decoder = decoder
        self._open_graph = open_graph
        self._bank = None
        if support is not None:
            self._bank = AdapterBank(
                support, base=base.digest, capacity=capacity, allocate=allocate
            )
        self._session: AdapterSession | None = None
        self._shelved: dict[str, ShelvedAdapter] = {}
        self._changing = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the base's second graph is in memory."""
        return self._session is not None

    def names(self) -> list[str]:
        """Return the names of the loaded adapters."""
        return sorted(self._shelved)

    def holds(self, bundle: Bundle) -> bool:
        """Whether this very adapter is loaded under its name."""
        shelved = self._shelved.get(bundle.manifest.name)
        return shelved is not None and shelved.bundle.digest == bundle.digest

    def get(self, name: str) -> ShelvedAdapter:
        """Return a loaded adapter.

        Raises:
            NotFoundError: None of that name is loaded.
        """
        shelved = self._shelved.get(name)
        if shelved is None:
            loaded = ", ".join(self.names()) or "none"
            raise NotFoundError(
                f"The model '{self._base.manifest.name}' has no adapter '{name}' loaded.",
                hint=f"Loaded are: {loaded}.",
            )
        return shelved

    def load(self, bundle: Bundle, special_tokens: dict[str, str]) -> None:
        """Load an adapter's bundle; one of the same name is replaced without a gap.

        The one before takes a place until its running answers have ended.

        Args:
            bundle: Verified before.
            special_tokens: The base's, for the adapter's chat template.

        Raises:
            UnsupportedError: The base takes no adapters.
            InvalidInputError: The bundle is no adapter.
            BundleError: It is of another base, or its files are not what they should be.
            BusyError: There is no room for another one.
        """
        interface = bundle.manifest.interface
        if not isinstance(interface, AdapterInterface):
            raise InvalidInputError(f"The bundle '{bundle.manifest.name}' is no adapter.")
        if self._bank is None:
            raise UnsupportedError(
                f"The model '{self._base.manifest.name}' was built without a graph for adapters.",
                hint="Build it with an adapter_rank.",
            )
        template, sampling, ends = _brought(bundle, interface, special_tokens)
        with self._changing:
            bank, weights = self._bank, self._bank.read(bundle)
            self._open_session(bank)
            adapter = Adapter(
                name=bundle.manifest.name,
                index=self._engine.call(lambda: bank.put(weights)),
                digest=bundle.digest,
                end_tokens=ends,
            )
            previous = self._shelved.get(adapter.name)
            self._shelved[adapter.name] = ShelvedAdapter(
                adapter=adapter, bundle=bundle, template=template, sampling=sampling
            )
            if previous:
                self._retire(previous, bank)

    def unload(self, name: str) -> "Future[None]":
        """Unload an adapter when its running answers have ended; new ones are refused at once.

        Returns:
            A future of that; it must not be cancelled.

        Raises:
            NotFoundError: None of that name is loaded.
        """
        with self._changing:
            shelved = self.get(name)
            del self._shelved[name]
            assert self._bank is not None  # noqa: S101 - an adapter was loaded
            return self._retire(shelved, self._bank)

    def close(self) -> None:
        """Free the graph; the engine has ended before."""
        if self._session is not None:
            self._session.close()

    def _open_session(self, bank: AdapterBank) -> None:
        if self._session is not None:
            return
        graph = self._open_graph()
        try:
            session = AdapterSession(graph, bank)
            self._engine.call(lambda: self._decoder.attach(session))
        except BaseException:
            graph.close()  # or its process would go on, and be started again
            raise
        self._session = session

    def _retire(self, shelved: ShelvedAdapter, bank: AdapterBank) -> "Future[None]":
        return self._engine.retire(shelved.adapter, lambda: bank.unload(shelved.adapter.index))


def _brought(
    bundle: Bundle, interface: AdapterInterface, special_tokens: dict[str, str]
) -> tuple[ChatTemplate | None, Sampling | None, frozenset[int] | None]:
    template = None
    if interface.chat_template is not None:
        source = bundle.read(interface.chat_template).decode("utf-8")
        template = ChatTemplate(source, special_tokens)
    sampling = None if interface.defaults is None else Sampling.of_defaults(interface.defaults)
    ends = None if interface.end_tokens is None else frozenset(interface.end_tokens)
    return template, sampling, ends
