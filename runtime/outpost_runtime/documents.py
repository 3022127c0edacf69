"""Strict reading of JSON and TOML: types, presence and leftovers, with the path of a fault.

A :class:`Reader` wraps one table of a document. Every getter takes a key away;
:meth:`Reader.end` refuses whatever was not asked for. So a field that this
build does not understand is an error and never silently ignored.
"""

import base64
import binascii
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from outpost_runtime.errors import InvalidInputError

T = TypeVar("T")

_LARGEST = sys.float_info.max


def parse_json_object(data: bytes, *, path: str) -> "Reader":
    """Read the bytes of a JSON object.

    Raises:
        InvalidInputError: The bytes are not UTF-8 JSON with an object at the top,
            or an object repeats a key.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object_without_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not valid JSON: {error}.") from error
    return Reader(value, path=path)


def canonical_json(value: Any) -> bytes:
    """Encode so that equal documents have equal bytes: sorted keys, fixed spacing, UTF-8."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


class Reader:
    """One table of a document, read strictly.

    Args:
        value: What the parser returned; anything but a dict with string keys is refused.
        path: Where this table stands, for messages, such as ``manifest.json:limits``.
    """

    def __init__(self, value: Any, *, path: str) -> None:
        if not isinstance(value, dict):
            raise InvalidInputError(f"{path} must be a table, not {_kind(value)}.")
        self._rest: dict[str, Any] = dict(value)
        self._path = path

    def string(self, key: str, default: str | None = None) -> str:
        """Take a string; required unless a default is given."""
        value: str = self._take(key, str, default)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Take an integer; required unless a default is given."""
        value: int = self._take(key, int, default)
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:  # noqa: FBT001 - as its kin
        """Take true or false; required unless a default is given."""
        value: bool = self._take(key, bool, default)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Take an integer or a float as float; required unless a default is given."""
        return self._float(key, self._take(key, (int, float), default))

    def binary(self, key: str, *, least: int = 0, most: int) -> bytes:
        """Take bytes that stand as base64 (RFC 4648, padded); required.

        Args:
            least: How many there must be.
            most: How many there may be.
        """
        text = self.string(key)
        try:
            value = base64.b64decode(text, validate=True) if len(text) <= 2 * most + 4 else None
        except (binascii.Error, ValueError):  # the latter of characters beyond ASCII
            value = None
        if value is None or not least <= len(value) <= most:
            raise self.fault(key, f"must be {least} to {most} bytes in base64")
        return value

    def optional(self, key: str, getter: Callable[[str], T]) -> T | None:
        """Take a value with ``getter`` (one of this reader's), or None when absent or null."""
        if self._rest.get(key) is None:
            self._rest.pop(key, None)
            return None
        return getter(key)

    def table(self, key: str) -> "Reader":
        """Take a table; required."""
        return Reader(self._take(key, dict, None), path=self._at(key))

    def tables(self, key: str) -> list["Reader"]:
        """Take a list of tables; required."""
        values = self._take(key, list, None)
        return [Reader(v, path=f"{self._at(key)}[{i}]") for i, v in enumerate(values)]

    def list_of(self, key: str, kind: type[T]) -> list[T]:
        """Take a list whose elements all are of one simple type."""
        values: list[Any] = self._take(key, list, None)
        for index, value in enumerate(values):
            _check(value, kind, f"{self._at(key)}[{index}]")
        return list(values)

    def items(self, key: str) -> list[Any]:
        """Take a list whose elements the caller checks; required."""
        values: list[Any] = self._take(key, list, None)
        return values

    def named_tables(self) -> dict[str, "Reader"]:
        """Take everything that is left, as tables by key."""
        rest, self._rest = self._rest, {}
        return {key: Reader(value, path=self._at(key)) for key, value in rest.items()}

    def raw(self) -> dict[str, Any]:
        """Take everything that is left as it is: for what is only stored and shown."""
        rest, self._rest = self._rest, {}
        return rest

    def named(self, kind: type[T] | tuple[type[T], ...]) -> dict[str, T]:
        """Take everything that is left, as values of one simple type by key."""
        rest, self._rest = self._rest, {}
        for key, value in rest.items():
            _check(value, kind, self._at(key))
        return rest

    def numbers(self) -> dict[str, float]:
        """Take everything that is left, as finite numbers by key."""
        return {key: self._float(key, value) for key, value in self.named((int, float)).items()}

    def end(self) -> None:
        """Refuse leftovers.

        Raises:
            InvalidInputError: The table has keys that nobody asked for.
        """
        if self._rest:
            names = ", ".join(sorted(self._rest))
            raise InvalidInputError(f"{self._path} has unknown keys: {names}.")

    def fault(self, key: str, problem: str) -> InvalidInputError:
        """Make the error for a value that has the right type but a wrong content."""
        return InvalidInputError(f"{self._at(key)} {problem}.")

    def _float(self, key: str, value: float) -> float:
        if not -_LARGEST <= value <= _LARGEST:  # whole numbers have no limit; NaN has no order
            raise self.fault(key, "is not a finite number")
        return float(value)

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if ":" in self._path else f"{self._path}:{key}"

    def _take(self, key: str, kind: Any, default: Any) -> Any:
        if key not in self._rest:
            if default is None:
                raise InvalidInputError(f"{self._at(key)} is missing.")
            return default
        value = self._rest.pop(key)
        _check(value, kind, self._at(key))
        return value


_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false",
          dict: "a table", list: "a list", type(None): "null"}  # fmt: skip


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _check(value: Any, kind: Any, path: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not fits:
        raise InvalidInputError(f"{path} must be {_NAMES[kinds[-1]]}, not {_kind(value)}.")
    if isinstance(value, str) and not _encodable(value):
        raise InvalidInputError(f"{path} is not valid Unicode.")


def _encodable(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no file, terminal or wire can take.
    return not any("\ud800" <= character <= "\udfff" for character in text)
