"""What the parameters of a request mean. Pure but for the clock that is handed in.

Names and units are Triton's: ``priority`` (1 is interactive, 2 and more batch, 0 the default),
``timeout`` (microseconds), ``sequence_id``, ``sequence_start``, ``sequence_end``;
``classification`` and ``shared_memory_*`` of outputs and inputs; ``binary_data`` over HTTP.
Names that begin with ``triton_`` are reserved.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.priority import Priority
from outpost_runtime.server.inference.message import Parameter, Placement, RequestedOutput
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.tensor.request import SequenceStep

WANTS_FINAL = "triton_enable_empty_final_response"
"""Ends the answers to a request with an empty one that says so."""

IS_FINAL = "triton_final_response"
"""Of every response in a stream: whether it is the last one to its request."""

_RESERVED = "triton_"
_INTERACTIVE_LEVELS = (0, 1)

_LONGEST_ID = 128
_LONGEST_TIMEOUT = 2**63 - 1  # microseconds, as over gRPC

MOST_PLACED = 256 << 20
"""Bytes of a request's inputs in shared memory, all together."""

T = TypeVar("T", bound=Parameter)


def check_reserved(parameters: Mapping[str, Parameter]) -> None:
    """Refuse names that mean nothing yet and are kept for what may come.

    Raises:
        InvalidInputError: There is one.
    """
    for name in parameters:
        if name.startswith(_RESERVED) and name != WANTS_FINAL:
            raise InvalidInputError(
                f"The parameter '{name}' is not allowed: names that begin with '{_RESERVED}' "
                "are reserved."
            )


def take(parameters: Mapping[str, Parameter], name: str, kind: type[T], default: T) -> T:
    """Return a parameter of one type.

    Raises:
        InvalidInputError: It is of another type.
    """
    value = parameters.get(name, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInputError(
            f"The parameter '{name}' is {repr(value)[:80]}; it must be of type {kind.__name__}."
        )
    return value


def priority_of(parameters: Mapping[str, Parameter]) -> Priority:
    """Return who a request is; levels below the lowest are the lowest.

    Raises:
        InvalidInputError: It is no level.
    """
    level = take(parameters, "priority", int, 0)
    if level < 0:
        raise InvalidInputError(
            f"The priority is {level}; it must be 1 (interactive) or 2 (batch)."
        )
    return Priority.INTERACTIVE if level in _INTERACTIVE_LEVELS else Priority.BATCH


def deadline_of(
    parameters: Mapping[str, Parameter], now: float, call: float | None
) -> float | None:
    """Return when nobody waits any more, of the clock that ``now`` was read from.

    Args:
        call: Seconds that the call itself has left, or None.
    """
    microseconds = take(parameters, "timeout", int, 0)
    if microseconds > _LONGEST_TIMEOUT:
        raise InvalidInputError("The timeout is not a number of 64 bits.")
    limits = [call] if call is not None else []
    limits += [microseconds / 1e6] if microseconds > 0 else []
    return now + min(limits) if limits else None


def sequence_of(parameters: Mapping[str, Parameter]) -> SequenceStep | None:
    """Return a request's place in a sequence, if it has one: an id of 0 or "" is none.

    Raises:
        InvalidInputError: The parameters are of other types, or flags come without an id.
    """
    found = parameters.get("sequence_id", 0)
    if isinstance(found, bool | float):
        raise InvalidInputError("The sequence_id must be a number or a text.")
    if isinstance(found, str) and len(found) > _LONGEST_ID:
        raise InvalidInputError(f"A sequence_id has at most {_LONGEST_ID} characters.")
    start = take(parameters, "sequence_start", bool, False)
    end = take(parameters, "sequence_end", bool, False)
    if not found:
        if start or end:
            raise InvalidInputError("sequence_start and sequence_end need a sequence_id.")
        return None
    return SequenceStep(id=found, start=start, end=end)


def requested_output(name: str, parameters: Mapping[str, Parameter]) -> RequestedOutput:
    """Return what an output's parameters ask for.

    Raises:
        InvalidInputError: They contradict each other or are of other types.
    """
    classes = take(parameters, "classification", int, 0)
    if classes < 0:
        raise InvalidInputError(f"The classification of '{name}' must name at least one class.")
    placement = placement_of(parameters)
    if classes and placement:
        raise InvalidInputError(f"Classes of '{name}' cannot be put into shared memory.")
    binary = take(parameters, "binary_data", bool, False) if "binary_data" in parameters else None
    return RequestedOutput(name=name, classes=classes, placement=placement, binary=binary)


def check_placements(placements: Iterable[Placement | None]) -> None:
    """Refuse a request that would have more read than it may, before anything is.

    Raises:
        InvalidInputError: Its inputs in shared memory are too large together.
    """
    if sum(place.byte_size for place in placements if place) > MOST_PLACED:
        raise InvalidInputError(
            f"The inputs in shared memory are larger than {MOST_PLACED} bytes together."
        )


def check_outputs(outputs: Iterable[RequestedOutput], regions: Regions) -> None:
    """Refuse outputs with places that nothing can be put into.

    Raises:
        OutpostError: Why; see :meth:`Regions.write`.
    """
    for output in outputs:
        if output.placement is not None:
            regions.check(output.placement)


def placement_of(parameters: Mapping[str, Parameter]) -> Placement | None:
    """Return where in shared memory a tensor lies, if it does.

    Raises:
        InvalidInputError: The place is not complete or impossible.
    """
    if "shared_memory_region" not in parameters:
        return None
    size = take(parameters, "shared_memory_byte_size", int, -1)
    offset = take(parameters, "shared_memory_offset", int, 0)
    if size < 0 or offset < 0:
        raise InvalidInputError(
            "A tensor in shared memory needs shared_memory_byte_size, and no negative offset."
        )
    return Placement(
        region=take(parameters, "shared_memory_region", str, ""), offset=offset, byte_size=size
    )
