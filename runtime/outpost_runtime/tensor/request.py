"""What goes into the tensor engine."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from outpost_runtime.latency import Figure, Wait
from outpost_runtime.priority import Priority
from outpost_runtime.tensors import Array

Outputs = dict[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceStep:
    """A request's place in a sequence of requests that share a model's state.

    Attributes:
        id: What the client calls the sequence: a number above 0 or a text.
        start: The state begins at zeros; whatever was kept under the id is forgotten.
        end: Nothing is kept after this request.
    """

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """One request on its way through the engine.

    Attributes:
        feeds: Input tensors by name, states left out.
        key: Requests of equal keys can share a run.
        rows: Of the batch dimension; 1 for models that have none.
        length: Of the dimension that is filled up, or 0.
        since: When it was submitted, of ``time.monotonic``.
        work: Numbers in the inputs that waited or ran when it came, its own included.
        deadline: After which nobody waits for it, of ``time.monotonic``.
    """

    feeds: Mapping[str, Array]
    key: tuple[object, ...]
    rows: int
    length: int
    since: float
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    sequence: SequenceStep | None = None
    work: int = 0
    future: "Future[Outputs]" = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Numbers in its inputs."""
        return sum(array.size for array in self.feeds.values())

    def is_late(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.deadline is not None and now > self.deadline

    def waited(self, now: float) -> Wait:
        """Return how long it has waited by ``now``, and for how much."""
        return Wait(figure=Figure.CALL, beside=0, work=self.work, seconds=now - self.since)
