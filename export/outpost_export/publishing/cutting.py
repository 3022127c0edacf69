"""Where files are cut into blocks: at tensors, so that what is unchanged is the same blocks. Pure.

1. A file is a row of spans: tensors, and what lies between them. Of tensors that overlap, the
   first counts.
2. A large span, from 64 KiB, is cut every 1 MiB from its own start.
3. Small spans between large ones share blocks: one ends as soon as it has 64 KiB.
4. A block of less than 4 KiB without a tensor, such as padding, joins the block before it.

So cuts depend on the layout alone: two versions of one architecture are cut alike, and what
changes its length moves no cut behind the next large tensor, seen from that tensor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outpost_runtime.update.elements import Kind
from outpost_runtime.update.levels import Rows
from outpost_runtime.update.release import BLOCK_BYTES

from outpost_export.publishing.layout import Tensor

LARGE_BYTES = 1 << 16
_PADDING_BYTES = 1 << 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One block of a file.

    Attributes:
        start: Its first byte.
        size: Bytes, 1 to :data:`~outpost_runtime.update.release.BLOCK_BYTES`.
        kind: How numbers lie there; None where there is no tensor.
        rows: Where the rows of a matrix lie in it, or None.
    """

    start: int
    size: int
    kind: Kind | None
    rows: Rows | None = None

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    size: int
    tensor: Tensor | None


def cuts(size: int, tensors: Sequence[Tensor]) -> list[Cut]:
    """Return the blocks of a file, which they cover from its first byte to its last.

    Args:
        size: Bytes of the file.
        tensors: What lies in it, in the order of its places.
    """
    made: list[Cut] = []
    small: list[_Span] = []
    for span in _spans(size, tensors):
        if span.size < LARGE_BYTES:
            small.append(span)
            if sum(s.size for s in small) >= LARGE_BYTES:
                _add(made, [_shared(small)])
                small = []
            continue
        if small:
            _add(made, [_shared(small)])
            small = []
        _add(made, _pieces(span))
    if small:
        _add(made, [_shared(small)])
    return made


def _spans(size: int, tensors: Sequence[Tensor]) -> Iterator[_Span]:
    at = 0
    for tensor in tensors:
        if tensor.start < at:
            continue
        if tensor.start > at:
            yield _Span(at, tensor.start - at, None)
        yield _Span(tensor.start, tensor.size, tensor)
        at = tensor.start + tensor.size
    if size > at:
        yield _Span(at, size - at, None)


def _add(made: list[Cut], more: Sequence[Cut]) -> None:
    first = more[0]
    padding = first.kind is None and first.size < _PADDING_BYTES
    if padding and made and made[-1].size + first.size <= BLOCK_BYTES:
        before = made.pop()
        joined = before.size + first.size
        more = [Cut(start=before.start, size=joined, kind=before.kind, rows=before.rows)]
    made += more


def _pieces(span: _Span) -> list[Cut]:
    return [
        Cut(
            start=span.start + at,
            size=min(BLOCK_BYTES, span.size - at),
            kind=None if span.tensor is None else span.tensor.kind,
            rows=None if span.tensor is None else _rows(span.tensor, at),
        )
        for at in range(0, span.size, BLOCK_BYTES)
    ]


def _rows(tensor: Tensor, at: int) -> Rows | None:
    if not tensor.width:
        return None
    first = at * 2 if tensor.kind is Kind.INT4 else at // tensor.kind.bytes
    return Rows(width=tensor.width, first=first % tensor.width)


def _shared(spans: Sequence[_Span]) -> Cut:
    start = spans[0].start
    held = [(span.start - start, span.tensor) for span in spans if span.tensor is not None]
    kinds = {tensor.kind for at, tensor in held if at % tensor.kind.bytes == 0}
    aligned = all(at % tensor.kind.bytes == 0 for at, tensor in held)
    kind = kinds.pop() if len(kinds) == 1 and aligned else Kind.INT8
    return Cut(start=start, size=sum(span.size for span in spans), kind=kind if held else None)
