"""A decoder whose token embeddings lie outside of its graph, looked up before every run.

Where a head is tied, embedding and head are one weight, most of a small model. ONNX Runtime packs
it for the head, and would keep it once more as it is for the embedding, of which a run reads a few
rows. So the graph takes these rows as an input, and here they are read from the bundle's own file
as they come, and kept (docs/adr/0008).
"""

from collections.abc import Mapping
from functools import lru_cache

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
"""As many as the tokens of a language's usual words; of Gemma 3 270M, 13 MB."""


class TokenRows:
    """The rows of all tokens, read from a bundle's file; those that were read are kept.

    They are read and not mapped: a file that a disk can no longer give, or that somebody made
    shorter, must not end the process. Opened graphs of one bundle share them.

    Args:
        contents: Of the bundle, verified before.
        kept_rows: At most; those that were not used for longest go first.
    """

    def __init__(
        self, contents: Contents, place: TokenTable, *, kept_rows: int = _KEPT_ROWS
    ) -> None:
        self.place = place
        self._contents = contents
        self._row = lru_cache(kept_rows)(self._read)

    def look_up(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the rows of ``ids`` [n] into ``out`` [n, row_bytes].

        Raises:
            InvalidInputError: There is no such token.
            BundleError: The file can no longer be read.
        """
        if ids.size and not 0 <= ids.min() <= ids.max() < self.place.tokens:
            raise InvalidInputError(f"The model has {self.place.tokens:,} tokens, and no others.")
        distinct, places = np.unique(ids, return_inverse=True)
        rows = [self._row(token) for token in distinct.tolist()]  # neighbours share a block
        for index, place in enumerate(places.tolist()):
            out[index] = np.frombuffer(rows[place], np.uint8)

    def _read(self, token: int) -> bytes:
        file, size = self.place.file, self.place.row_bytes
        start = self.place.start + token * size
        row = b"".join(self._contents.pieces(file, start=start, size=size))
        if len(row) != size:
            raise BundleError(f"{self._contents.place(file)} is shorter than the manifest says.")
        return row


class TableBinding:
    """A binding whose ``input_ids`` bring their rows with them; see :meth:`TableSession.bind`."""

    def __init__(self, binding: Binding, table: TokenRows) -> None:
        self._binding = binding
        self._table = table
        self._ids = np.zeros((0, 0), np.int64)
        self._width = table.place.row_bytes
        self._rows = np.zeros((0, self._width), np.uint8)

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.feed(name, array)
        if name != _IDS:
            return
        self._ids = array
        if array.size > len(self._rows):
            self._rows = np.zeros((array.size, self._width), np.uint8)
        rows = self._rows[: array.size].reshape(*array.shape, self._width)
        self._binding.feed(ROWS, rows)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.put(name, array)

    def run(self) -> None:
        """See :class:`Binding`."""
        ids = self._ids.reshape(-1)
        self._table.look_up(ids, self._rows[: len(ids)])
        self._binding.run()


class TableSession:
    """A graph with a table, with the signature of one that has it inside; a :class:`Session`.

    Args:
        session: The graph, opened; it is closed with this one.

    Raises:
        BundleError: The graph does not take rows of this table.
    """

    def __init__(self, session: Session, table: TokenRows) -> None:
        width = table.place.row_bytes
        wanted = TensorSpec(name=ROWS, datatype="UINT8", shape=(None, None, width))
        if wanted not in session.inputs:
            raise BundleError(f"The graph lacks the input {wanted} for its table of tokens.")
        self._session = session
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
        rows = np.zeros((ids.size, self._table.place.row_bytes), np.uint8)
        self._table.look_up(ids.reshape(-1), rows)
        return self._session.run({**feeds, ROWS: rows.reshape(*ids.shape, rows.shape[1])})

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> TableBinding:
        """See :class:`Session`."""
        apart = {name: array for name, array in inputs.items() if name != _IDS}
        binding = TableBinding(self._session.bind(apart, outputs), self._table)
        if _IDS in inputs:
            binding.feed(_IDS, inputs[_IDS])
        return binding

    def close(self) -> None:
        """See :class:`Session`."""
        self._session.close()


def with_table(session: Session, table: TokenRows | None) -> Session:
    """Return a decoder's session with its table of tokens, if it has one.

    Raises:
        BundleError: The graph does not take rows of this table; it is closed.
    """
    if table is None:
        return session
    try:
        return TableSession(session, table)
    except BaseException:
        session.close()
        raise


def token_rows(contents: Contents, place: TokenTable | None) -> TokenRows | None:
    """Return the table of a bundle, verified before, if it has one."""
    return None if place is None else TokenRows(contents, place)
