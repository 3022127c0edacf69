"""A request and its responses, whatever they came in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from outpost_runtime.raw_tensors import weight_of
from outpost_runtime.tensors import Array

Parameter = bool | int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where in a registered region of shared memory a tensor lies."""

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedOutput:
    """An output that a client wants.

    Attributes:
        classes: Above 0: the largest so many elements, as text, instead of the tensor.
        placement: Where to put it, or None to send it.
        binary: Over HTTP: as bytes behind the JSON; None is what the request says.
    """

    name: str
    classes: int = 0
    placement: Placement | None = None
    binary: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """What a client asks.

    Attributes:
        feeds: Tensors by name.
        outputs: What is wanted; empty is all that the model has.
    """

    model: str
    version: str
    id: str
    feeds: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputTensor:
    """A tensor of an answer; ``placement`` says that it was put there instead of sent."""

    name: str
    datatype: str
    array: Array
    placement: Placement | None = None
    binary: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InferResponse:
    """One answer; a text model gives many to one request."""

    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """What writing it takes; see :func:`weight_of`."""
        return sum(weight_of(output.array) for output in self.outputs)
