"""LoRA adapters of one base, stacked so that every row of a batch can have its own.

A base that takes adapters carries a second graph of the same weights
(:class:`AdapterSupport`). For each linear layer ``NAME`` it adds B·(A·x) to W·x
(Hu et al. 2021), where A and B are inputs of the graph:

1. ``NAME.lora_A`` is float32 [n · rank, inputs] and ``NAME.lora_B`` float32
   [n · rank, outputs]: n adapters one behind the other, each padded with zeros to the
   rank of the support. The scale alpha / r is in B already.
2. ``adapter_rows`` is int64 [batch]: which of the n adapters a row has. -1 is none; the
   row then gets what the plain graph computes.
3. The graph takes any n of at least 1 and pays for each. So a run binds no more than the
   span of indices that its rows need, and a prompt always binds one adapter alone.
4. Every weight is finite: what other adapters make of a row is dropped by a ``Where``,
   and zeros times their B must be zeros.

An adapter's file (safetensors, float32) has ``NAME.lora_A`` [r, inputs] and
``NAME.lora_B`` [r, outputs] for the layers that it changes, r at most the rank.

The memory of a bank is allocated once, at the first load, and never moves: bindings
stay right while adapters come and go. Only :meth:`AdapterBank.read` and ``check`` may
run on any thread. Whoever runs the session puts and unloads between runs, and unloads
no adapter that a row still has.
An index is used again after :meth:`AdapterBank.unload`: what is remembered per adapter
(prefixes of the key/value memory) must be keyed by its bundle's digest, not by its index.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, BusyError, InvalidInputError
from outpost_runtime.interface import AdapterInterface, AdapterSupport
from outpost_runtime.tensors import Allocate, TensorSpec

ROWS = "adapter_rows"
"""The graph's input that chooses; see rule 2."""

_A, _B = ".lora_A", ".lora_B"
_NONE = -1
_MAX_HEADER_BYTES = 1 << 20

Weights = Mapping[str, NDArray[np.float32]]
"""What an adapter's file holds."""


class AdapterBank:
    """The loaded adapters of one base.

    Args:
        support: What the base's manifest says about adapters.
        base: Digest of the base's bundle.
        capacity: Adapters that can be loaded at once.
        allocate: Of the stacks of weights.
    """

    def __init__(
        self,
        support: AdapterSupport,
        *,
        base: str,
        capacity: int,
        allocate: Allocate = np.zeros,
    ) -> None:
        if capacity < 1:
            raise InvalidInputError("There must be room for at least one adapter.")
        self.capacity = capacity
        self._base = base
        self._rank = support.rank
        self._widths = {
            name: width
            for linear, shape in support.linears.items()
            for name, width in ((linear + _A, shape.inputs), (linear + _B, shape.outputs))
        }
        self._allocate_stack = allocate
        self._loaded: set[int] = set()
        self._stacks: dict[str, NDArray[np.float32]] = {}

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the adapter graph must have as inputs beside those of the plain one."""
        stacks = (
            TensorSpec(name=name, datatype="FP32", shape=(None, width))
            for name, width in self._widths.items()
        )
        return (TensorSpec(name=ROWS, datatype="INT64", shape=(None,)), *stacks)

    @property
    def bytes_per_adapter(self) -> int:
        """Memory of one index; a bank takes ``capacity`` times as much at its first load."""
        return self._rank * sum(self._widths.values()) * np.dtype(np.float32).itemsize

    @property
    def loaded(self) -> frozenset[int]:
        """Indices that rows may name."""
        return frozenset(self._loaded)

    def read(self, bundle: Bundle) -> Weights:
        """Read an adapter's file and check it; nothing is changed, so any thread may do it.

        Raises:
            InvalidInputError: The bundle is no adapter.
            BundleError: It is of another base, or its weights are damaged or do not fit.
        """
        manifest = bundle.manifest
        interface = manifest.interface
        if not isinstance(interface, AdapterInterface):
            raise InvalidInputError(f"The bundle '{manifest.name}' is no adapter.")
        if interface.base != self._base:
            raise BundleError(
                f"The adapter '{manifest.name}' was built for another bundle of its base "
                f"'{interface.base_name}' ({interface.base[:12]}, here is {self._base[:12]}).",
                hint="Build the adapter for the base that is served.",
            )
        weights = self._parsed(bundle, interface.weights)
        self.check(weights)
        return weights

    def check(self, weights: Weights) -> None:
        """Check that weights are an adapter of this base.

        Raises:
            BundleError: They are not; the layer is named.
        """
        if not weights:
            raise BundleError("The adapter has no weights.")
        for name, array in weights.items():
            self._check_array(name, array)
        for name, array in weights.items():
            other = name.removesuffix(_A) + _B if name.endswith(_A) else name[: -len(_B)] + _A
            if len(weights.get(other, ())) != len(array):
                raise BundleError(f"The adapter's '{name}' has no '{other}' of the same rank.")

    def put(self, weights: Weights) -> int:
        """Copy an adapter that was read, or checked, to a free index.

        Raises:
            BusyError: The bank is full, or has no memory; nothing was changed.
        """
        index = self._free_index()
        self._allocate()
        for name, array in weights.items():
            self._stacks[name][index, : len(array)] = array
        self._loaded.add(index)
        return index

    def load(self, bundle: Bundle) -> int:
        """Read an adapter's bundle and put it; see both for what they raise.

        Returns:
            The adapter's index, below :attr:`capacity`.
        """
        self._free_index()
        return self.put(self.read(bundle))

    def unload(self, index: int) -> None:
        """Forget an adapter that no row has any more; its index is free again."""
        if index not in self._loaded:
            raise AssertionError(f"adapter {index} is not loaded")
        for stack in self._stacks.values():
            stack[index] = 0
        self._loaded.remove(index)

    def arrays(self, span: range) -> dict[str, NDArray[np.float32]]:
        """Return what to bind for some indices: views by the graph's input names.

        Args:
            span: Indices without a gap, at least one.
        """
        self._allocate()
        part = slice(span.start, span.stop)
        return {
            name: stack[part].reshape(-1, self._widths[name])
            for name, stack in self._stacks.items()
        }

    def span(self, adapters: Sequence[int | None]) -> range:
        """Return the shortest span that holds the adapters of some rows."""
        wanted = {index for index in adapters if index is not None}
        if not wanted <= self._loaded:
            raise AssertionError(f"adapters {wanted - self._loaded} are not loaded")
        return range(min(wanted), max(wanted) + 1) if wanted else range(1)

    def rows(self, adapters: Sequence[int | None], span: range) -> NDArray[np.int64]:
        """Return what ``adapter_rows`` must hold where ``span`` is bound."""
        numbers = [_NONE if index is None else index - span.start for index in adapters]
        return np.array(numbers, np.int64)

    def _free_index(self) -> int:
        for index in range(self.capacity):
            if index not in self._loaded:
                return index
        raise BusyError(
            f"All {self.capacity} places for adapters are taken.", hint="Unload another one first."
        )

    def _allocate(self) -> None:
        if self._stacks:
            return
        float32 = np.dtype(np.float32)
        try:
            self._stacks = {
                name: self._allocate_stack((self.capacity, self._rank, width), float32)
                for name, width in self._widths.items()
            }
        except MemoryError as error:
            needed = self.capacity * self.bytes_per_adapter
            raise BusyError(
                f"There is no memory for {self.capacity} adapters ({needed:,} bytes).",
                hint="Allow fewer adapters.",
            ) from error

    def _check_array(self, name: str, array: NDArray[np.float32]) -> None:
        if name not in self._widths:
            raise BundleError(f"The adapter's '{name}' is no layer that its base lets change.")
        width = self._widths[name]
        fits = array.shape in {(rank, width) for rank in range(1, self._rank + 1)}
        if array.dtype != np.float32 or not fits:
            raise BundleError(
                f"The adapter's '{name}' is {array.dtype} {list(array.shape)}; "
                f"the base takes float32 [at most {self._rank}, {width}]."
            )
        if not np.isfinite(array).all():
            raise BundleError(f"The adapter's '{name}' has values that are not finite.")

    def _parsed(self, bundle: Bundle, name: str) -> Weights:
        entry = bundle.manifest.files[name]
        if entry.size > self.bytes_per_adapter + _MAX_HEADER_BYTES:
            raise BundleError(
                f"The adapter's {name} has {entry.size:,} bytes, more than its base takes."
            )
        data = bundle.read(name)
        try:
            weights: Weights = safetensors.numpy.load(data)
        except (AttributeError, safetensors.SafetensorError) as error:  # unknown dtypes, too
            raise BundleError(f"{name} is no safetensors file: {error}.") from error
        return weights
