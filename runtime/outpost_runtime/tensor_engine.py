"""The tensor engine: every model that is not a text generator. Tensors in, tensors out.

One thread owns the session; at the door stands a bounded number of permits.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore

from outpost_runtime.errors import BusyError, UnavailableError
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

QUEUE_LIMIT = 64


class TensorEngine:
    """Runs a session for many callers, one run at a time.

    Args:
        session: The engine owns it from now on.
        queue_limit: Runs that may wait or be under way before others are refused.
    """

    def __init__(self, session: Session, *, queue_limit: int = QUEUE_LIMIT) -> None:
        self._session = session
        self._permits = BoundedSemaphore(queue_limit)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tensor-engine")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a run expects."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a run gives."""
        return self._session.outputs

    def submit(self, feeds: Mapping[str, Array]) -> "Future[dict[str, Array]]":
        """Queue a run; cancelling the future before its turn leaves it out.

        Returns:
            A future of the outputs by name; it raises ``ExecutionError`` if the run failed.

        Raises:
            InvalidInputError: The feeds do not match the model's inputs.
            BusyError: Too many runs are waiting.
            UnavailableError: The engine is closed.
        """
        check_feeds(self._session.inputs, feeds)
        if not self._permits.acquire(blocking=False):
            raise BusyError("Too many requests are waiting.", hint="Try again in a few seconds.")
        try:
            future = self._executor.submit(self._session.run, feeds)
        except RuntimeError as error:  # the executor's word for "shut down"
            self._permits.release()
            raise UnavailableError("The model is being closed.") from error
        future.add_done_callback(lambda _: self._permits.release())
        return future

    def close(self) -> None:
        """Finish what runs, drop what waits, free the model."""
        self._executor.shutdown(cancel_futures=True)
        self._session.close()
