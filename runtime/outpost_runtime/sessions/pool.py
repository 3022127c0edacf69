"""Several sessions of one model, for runs at the same time: each run takes a free one.

For sessions that run once at a time, such as those in processes of their own. The first
of the free ones is taken, so that where one suffices the others' memory is not used.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

from outpost_runtime.sessions import Binding
from outpost_runtime.sessions.process import ProcessSession
from outpost_runtime.tensors import Array


class SessionPool:
    """Sessions of the same model; see :class:`Session`.

    Args:
        sessions: At least one; the pool owns them from now on.
    """

    def __init__(self, sessions: Sequence[ProcessSession]) -> None:
        self.inputs = sessions[0].inputs
        self.outputs = sessions[0].outputs
        self._sessions = tuple(sessions)
        self._free = set(sessions)
        self._changed = threading.Condition()

    @property
    def process_id(self) -> int | None:
        """Of the process that takes the next run, if all are free."""
        return self._sessions[0].process_id

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Session`; waits while all are busy.

        Raises:
            UnavailableError: The process of this run has ended; others go on.
        """
        session = self._take()
        try:
            return session.run(feeds)
        finally:
            with self._changed:
                self._free.add(session)
                self._changed.notify()

    def bind(
        self,
        inputs: Mapping[str, Array],  # noqa: ARG002 - the contract's
        outputs: Mapping[str, Array],  # noqa: ARG002 - the contract's
    ) -> Binding:
        """Not offered: which session runs is not known before."""
        raise AssertionError("a pool of sessions cannot bind memory")

    def close(self) -> None:
        """See :class:`Session`."""
        for session in self._sessions:
            session.close()

    def _take(self) -> ProcessSession:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._free))
            free = [session for session in self._sessions if session in self._free]
            # One that is being started again would refuse what another one can do.
            running = (session for session in free if session.process_id is not None)
            session = next(running, free[0])
            self._free.remove(session)
            return session


def open_pool(open_one: Callable[[], ProcessSession], count: int) -> SessionPool:
    """Open a model several times.

    Raises:
        BundleError: It cannot be opened; none is left open.
    """
    sessions: list[ProcessSession] = []
    try:
        while len(sessions) < count:
            sessions.append(open_one())
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return SessionPool(sessions)
