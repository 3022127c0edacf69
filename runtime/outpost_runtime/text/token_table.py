"""A decoder whose token embeddings lie outside of its graph, looked up before every run.

Where a head is tied, embedding and head are one weight, most of a small model. ONNX Runtime packs
it for the head, and would keep it once more as it is for the embedding, of which a run reads a few
rows. So the graph takes these rows as an input, and here they are read from the bundle's own
file: mapped where it lies on a disk as it is, else decrypted as they come and kept (docs/adr/0008).
"""

import mmap
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.contents import Contents
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import TokenTable
from outpost_runtime.sessions import Binding, Session
from outpost_runtime.tensors import Array, TensorSpec

ROWS = "embedding_rows"
"""The graph's input: [batch, n, row_bytes] uint8, the rows of ``input_ids``."""

_IDS = "input_ids"
_KEPT_ROWS = 1 << 14
"""Of a table that must be decrypted: the tokens of a language's usual words."""

Rows = NDArray[np.uint8]


class Table(Protocol):
    """The rows of all tokens. One thread uses it."""

    def look_up(self, ids: NDArray[np.int64], out: Rows) -> None:
        """Copy the rows of ``ids`` [n] into ``out`` [n, row_bytes].

        Raises:
            BundleError: The bundle's file can no longer be read.
        """


class MappedTable:
    """A table in a file that lies on a disk as it is.

    Args:
        memory: The file, mapped; the system reads and forgets its pages as it likes.
    """

    def __init__(self, place: TokenTable, memory: mmap.mmap) -> None:
        count = place.tokens * place.row_bytes
        rows = np.frombuffer(memory, np.uint8, count, place.start)
        self._rows = rows.reshape(place.tokens, place.row_bytes)

    def look_up(self, ids: NDArray[np.int64], out: Rows) -> None:
        """See :class:`Table`."""
        np.take(self._rows, ids, axis=0, out=out, mode="clip")  # any other copies once more


class DecryptedTable:
    """A table of contents that lie nowhere as they are; rows are kept once they were read.

    Args:
        contents: Of the bundle.
        kept_rows: At most; those that were not used for longest go first.
    """

    def __init__(
        self, contents: Contents, place: TokenTable, *, kept_rows: int = _KEPT_ROWS
    ) -> None:
        self._contents = contents
        self._place = place
        self._row = lru_cache(kept_rows)(self._read)

    def look_up(self, ids: NDArray[np.int64], out: Rows) -> None:
        """See :class:`Table`."""
        distinct, places = np.unique(ids, return_inverse=True)
        rows = [self._row(token) for token in distinct.tolist()]  # neighbours share a block
        for index, place in enumerate(places.tolist()):
            out[index] = np.frombuffer(rows[place], np.uint8)

    def _read(self, token: int) -> bytes:
        file, size = self._place.file, self._place.row_bytes
        start = self._place.start + token * size
        row = b"".join(self._contents.pieces(file, start=start, size=size))
        if len(row) != size:
            raise BundleError(f"{self._contents.place(file)} is shorter than the manifest says.")
        return row


class TableBinding:
    """A binding whose ``input_ids`` bring their rows with them; see :meth:`TableSession.bind`."""

    def __init__(self, binding: Binding, place: TokenTable, table: Table) -> None:
        self._binding = binding
        self._place = place
        self._table = table
        self._ids = np.zeros((0, 0), np.int64)
        self._rows = np.zeros((0, place.row_bytes), np.uint8)

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.feed(name, array)
        if name != _IDS:
            return
        self._ids = array
        if array.size > len(self._rows):
            self._rows = np.zeros((array.size, self._place.row_bytes), np.uint8)
        rows = self._rows[: array.size].reshape(*array.shape, self._place.row_bytes)
        self._binding.feed(ROWS, rows)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.put(name, array)

    def run(self) -> None:
        """See :class:`Binding`."""
        ids = self._ids.reshape(-1)
        _check(ids, self._place)
        self._table.look_up(ids, self._rows[: len(ids)])
        self._binding.run()


class TableSession:
    """A graph with a table, with the signature of one that has it inside; a :class:`Session`.

    Args:
        session: The graph, opened; it is closed with this one.

    Raises:
        BundleError: The graph does not take rows of this table.
    """

    def __init__(self, session: Session, place: TokenTable, table: Table) -> None:
        wanted = TensorSpec(name=ROWS, datatype="UINT8", shape=(None, None, place.row_bytes))
        if wanted not in session.inputs:
            raise BundleError(f"The graph lacks the input {wanted} for its table of tokens.")
        self._session = session
        self._place = place
        self._table = table
        self._inputs = tuple(spec for spec in session.inputs if spec != wanted)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the graph, without the rows."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the graph."""
        return self._session.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Session`."""
        ids = feeds[_IDS]
        _check(ids, self._place)
        rows = np.zeros((ids.size, self._place.row_bytes), np.uint8)
        self._table.look_up(ids.reshape(-1), rows)
        return self._session.run({**feeds, ROWS: rows.reshape(*ids.shape, rows.shape[1])})

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> TableBinding:
        """See :class:`Session`."""
        apart = {name: array for name, array in inputs.items() if name != _IDS}
        binding = TableBinding(self._session.bind(apart, outputs), self._place, self._table)
        if _IDS in inputs:
            binding.feed(_IDS, inputs[_IDS])
        return binding

    def close(self) -> None:
        """See :class:`Session`."""
        self._session.close()


def with_table(session: Session, contents: Contents, place: TokenTable | None) -> Session:
    """Return a decoder's session with its table of tokens, if it has one.

    Args:
        contents: Of its bundle, verified before.

    Raises:
        BundleError: The table is not where the manifest says.
    """
    if place is None:
        return session
    try:
        return TableSession(session, place, _table(contents, place))
    except BaseException:
        session.close()
        raise


def _table(contents: Contents, place: TokenTable) -> Table:
    path = contents.path(place.file)
    if path is None:
        return DecryptedTable(contents, place)
    try:
        with path.open("rb") as file:
            return MappedTable(place, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as a table of tokens: {error}.") from error


def _check(ids: NDArray[np.int64], place: TokenTable) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < place.tokens:
        raise InvalidInputError(f"The model has {place.tokens:,} tokens, and no others.")
