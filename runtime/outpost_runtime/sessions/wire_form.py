"""Protocol buffers without their schemas: the fields of a message, and how to write one.

See https://protobuf.dev/programming-guides/encoding/. Groups, which nobody writes any more, are
not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_MOST_VARINT_BYTES = 10
_MORE = 0x80  # in every byte of a number but its last


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field as it stands in a message.

    Attributes:
        kind: Its wire type.
        whole: All its bytes, key included.
        number_value: What a VARINT says, else 0.
        content: What is inside of a DELIMITED field, else nothing.
    """

    number: int
    kind: int
    whole: memoryview
    number_value: int
    content: memoryview

    @property
    def text(self) -> str:
        """The content as text."""
        return bytes(self.content).decode("utf-8")


def fields(message: memoryview) -> Iterator[Field]:
    """Give the fields of a message in their order.

    Raises:
        ValueError: It is no message.
    """
    at = 0
    while at < len(message):
        key, start = _varint(message, at)
        kind, value, end = key & 7, 0, 0
        if kind == VARINT:
            value, end = _varint(message, start)
        elif kind == DELIMITED:
            size, start = _varint(message, start)
            end = start + size
        elif kind in _FIXED_BYTES:
            end = start + _FIXED_BYTES[kind]
        else:
            raise ValueError(f"a field of the kind {kind}")
        if end > len(message):
            raise ValueError("a field that ends behind its message")
        content = message[start:end] if kind == DELIMITED else message[:0]
        yield Field(
            number=key >> 3,
            kind=kind,
            whole=message[at:end],
            number_value=value,
            content=content,
        )
        at = end


def varints(content: memoryview) -> Iterator[int]:
    """Give the numbers of a packed field."""
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def head(number: int, size: int) -> bytes:
    """Return what stands before the content of a DELIMITED field."""
    return _encoded(number << 3 | DELIMITED) + _encoded(size)


def delimited(number: int, content: bytes) -> bytes:
    """Return a DELIMITED field."""
    return head(number, len(content)) + content


def varint_field(number: int, value: int) -> bytes:
    """Return a VARINT field of a number that is not negative."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value >= _MORE:
        parts.append(value & 0x7F | _MORE)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_MOST_VARINT_BYTES):
        if at + count >= len(message):
            break
        byte = message[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < _MORE:
            return value, at + count + 1
    raise ValueError("a number without an end")
