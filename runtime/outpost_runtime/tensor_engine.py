"""The tensor engine: every model that is not a text generator. Tensors in, tensors out.

One thread owns the session; in front of it stands one bounded queue.
"""

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future

from outpost_runtime.errors import BusyError, InvalidInputError, UnavailableError
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

QUEUE_LIMIT = 64

_ANY = 1 << 62

Outputs = dict[str, Array]
_Job = tuple[Mapping[str, Array], "Future[Outputs]"]


class TensorEngine:
    """Runs a session for many callers, one run at a time.

    Args:
        session: The engine owns it from now on.
        max_batch: Size of the first dimension of inputs, at most.
        max_sequence: Size of their second dimension, at most.
        queue_limit: Runs that may wait before others are refused.
    """

    def __init__(
        self, session: Session, *, max_batch: int, max_sequence: int | None, queue_limit: int = QUEUE_LIMIT
    ) -> None:
        self._session = session
        self._most = (max_batch or _ANY, max_sequence or _ANY)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(queue_limit)
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tensor-engine", daemon=True)
        self._thread.start()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a run expects."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a run gives."""
        return self._session.outputs

    def submit(self, feeds: Mapping[str, Array]) -> "Future[Outputs]":
        """Queue a run; cancelling the future before its turn leaves it out.

        Returns:
            A future of the outputs by name; it raises what :meth:`Session.run` raises.

        Raises:
            InvalidInputError: The feeds do not match the model's inputs, or are too large.
            BusyError: Too many runs are waiting.
            UnavailableError: The engine is closed.
        """
        check_feeds(self._session.inputs, feeds)
        self._check_sizes(feeds)
        if self._closing:
            raise UnavailableError("The model is being closed.", hint="Try again in a moment.")
        future: Future[Outputs] = Future()
        try:
            self._jobs.put_nowait((feeds, future))
        except queue.Full:
            raise BusyError(
                "Too many requests are waiting.", hint="Try again in a few seconds."
            ) from None
        return future

    def close(self) -> None:
        """Finish what runs, drop what waits, free the model."""
        self._closing = True
        self._drop_waiting()
        self._jobs.put(None)
        self._thread.join()
        self._drop_waiting()
        self._session.close()

    def _check_sizes(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            for size, most, what in zip(array.shape, self._most, ("batch", "length"), strict=False):
                if not 1 <= size <= most:
                    raise InvalidInputError(
                        f"Input '{name}' has a {what} of {size}; this model takes 1 to {most}."
                    )

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            feeds, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._session.run(feeds))
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)

    def _drop_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job[1].cancel()
