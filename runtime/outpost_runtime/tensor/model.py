"""A tensor bundle, opened."""

from outpost_runtime.bundle import Bundle
from outpost_runtime.interface import TensorInterface
from outpost_runtime.priority import Precedence
from outpost_runtime.sessions import Session
from outpost_runtime.tensor.engine import TensorEngine, TensorLimits, TensorShape


class TensorModel:
    """What serves one bundle that neither generates text nor embeds it.

    Args:
        bundle: Its interface is a :class:`TensorInterface`.
        session: Owned by the model from now on.
        measured_numbers: Of the run by which the memory for runs was measured; see
            ``footprint.py``.
    """

    def __init__(
        self,
        bundle: Bundle,
        interface: TensorInterface,
        session: Session,
        limits: TensorLimits | None = None,
        precedence: Precedence | None = None,
        measured_numbers: int = 0,
    ) -> None:
        self.measured_numbers = measured_numbers
        self.bundle = bundle
        self.interface = interface
        shape = TensorShape(
            max_batch=interface.max_batch,
            max_sequence=interface.max_sequence,
            padded=interface.padded,
            states=interface.states,
        )
        self.engine = TensorEngine(session, shape, limits, precedence)

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Free the model; see :meth:`TensorEngine.close`."""
        self.engine.close(drain_seconds=drain_seconds)
