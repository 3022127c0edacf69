"""A session in a process of its own, kept alive.

A crash of a model, or of the library under it, then ends one process and not the server,
and closing it really gives its memory back. Rules:

1. When the process ends, the run that it was doing fails as UNAVAILABLE, and so do others
   until it is back.
2. It is started again after :data:`FIRST_PAUSE`, and after each further death twice as late, up
   to :data:`LONGEST_PAUSE`; one that has lived for :data:`HEALTHY_SECONDS` starts afresh.
3. It has nothing but its socket and shared memory: no listener, no client. A graph that lies
   nowhere as it is reaches it through a pipe, and memory files without names.
4. What is bound lies in memory that outlives it. One that is started again is told the bindings
   anew, and finds there what the runs before its end have written.
5. One whose answer is none (it is damaged, or taken over) is ended, and started again.
"""

import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from outpost_runtime.errors import (
    BundleError,
    ExecutionError,
    InvalidInputError,
    OutpostError,
    UnavailableError,
)
from outpost_runtime.sessions import worker as worker_module
from outpost_runtime.sessions.bound_memory import BoundMemory
from outpost_runtime.sessions.graph import FileGraph, Graph, Opening
from outpost_runtime.sessions.handover import request_of, specs_of
from outpost_runtime.sessions.process_binding import Copies, ProcessBinding
from outpost_runtime.sessions.shared_tensors import SharedFile, receive, send
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
HEALTHY_SECONDS = 60.0

_LOG = logging.getLogger(__name__)
_ERRORS: dict[str, type[OutpostError]] = {
    error.__name__: error for error in (BundleError, ExecutionError, InvalidInputError)
}
_NO_ANSWER = (OSError, ValueError, LookupError, TypeError)
"""What a message raises that is not what it should be; see rule 5."""

_Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Worker:
    """A running process and the ways to it."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket
    inputs: SharedFile
    outputs: SharedFile

    def hang_up(self) -> None:
        """Let nobody wait for its answer any more, whoever else holds the other end."""
        with suppress(OSError):  # it is closed already
            self.channel.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.channel.close()  # which it takes as the end
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.inputs.close()
        self.outputs.close()


class ProcessSession:
    """An ONNX Runtime session in a supervised process; see :class:`Session`.

    Args:
        source: A graph, or the ``.onnx`` file of one.
        threads: Threads of one run; None takes the physical cores.
        memory: Where what is bound lies; sessions of one model can share it. None is for a session
            whose runs are free.

    Raises:
        BundleError: The model cannot be opened.
    """

    def __init__(
        self,
        source: Path | Graph,
        *,
        threads: int | None = None,
        memory: BoundMemory | None = None,
    ) -> None:
        self._graph = FileGraph(source) if isinstance(source, Path) else source
        self._threads = threads
        self._memory = memory
        self._copies = Copies(memory) if memory else None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._worker: _Worker | None
        self._worker, self.inputs, self.outputs = self._start()
        self._supervisor = threading.Thread(
            target=self._supervise, name="session-supervisor", daemon=True
        )
        self._supervisor.start()

    @property
    def process_id(self) -> int | None:
        """Of the process, or None while there is none."""
        worker = self._worker
        return None if worker is None else worker.process.pid

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Session`.

        Raises:
            UnavailableError: The process has ended, and comes back by itself.
        """
        check_feeds(self.inputs, feeds)
        with self._lock:
            worker = self._running()
            with _listening(worker):
                answer = _answer_of(worker, {"tensors": worker.inputs.put(feeds)})
                return {name: a.copy() for name, a in worker.outputs.get(answer["tensors"]).items()}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> ProcessBinding:
        """See :class:`Session`; outputs must lie in the session's memory, and large inputs should.

        Its runs raise what :meth:`run` does.
        """
        if self._memory is None or self._copies is None:
            raise AssertionError("a session in another process binds no memory but its own")
        number = next(self._numbers)
        binding = ProcessBinding(number, self._memory, self._copies, self._run_bound)
        for name, array in outputs.items():
            binding.put(name, array)
        for name, array in inputs.items():
            binding.feed(name, array)
        return binding

    def close(self) -> None:
        """See :class:`Session`."""
        self._closing.set()
        running = self._worker
        if running is not None:
            running.process.kill()  # which ends a run that may hang, and so gives up the lock
        with self._lock:
            worker = self._worker
            self._worker = None
            if worker is not None:
                worker.end()
        self._supervisor.join()

    def _run_bound(self, binding: ProcessBinding) -> None:
        with self._lock:
            worker = self._running()
            news = binding.news(worker)
            binding.told_to = None
            with _listening(worker):
                _answer_of(worker, news)
            binding.told_to = worker

    def _running(self) -> _Worker:
        if self._worker is None:
            raise _gone()
        return self._worker

    def _start(self) -> tuple[_Worker, _Specs, _Specs]:
        worker = None
        try:
            with self._graph.opened() as opening:
                worker = _spawn(opening.descriptors, self._memory)
                return worker, *self._open(worker, opening)
        except BaseException:
            if worker is not None:
                worker.end()
            raise

    def _open(self, worker: _Worker, opening: Opening) -> tuple[_Specs, _Specs]:
        try:
            send(worker.channel, request_of(opening, self._graph.label, self._threads))
            ready = receive(worker.channel)
            if ready is None:
                raise BundleError(f"The process for {self._graph.label} ended while it opened it.")
            if "error" in ready:
                _raise(ready)
            return specs_of(ready["inputs"]), specs_of(ready["outputs"])
        except _NO_ANSWER as error:
            raise ExecutionError("The model's process does not speak as it should.") from error

    def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while (worker := self._worker) is not None:
            began = time.monotonic()
            status = worker.process.wait()
            worker.hang_up()
            if self._closing.is_set():
                return
            with self._lock:
                if self._worker is None:
                    return  # closed meanwhile, which has ended it
                self._worker = None
                worker.end()
            if time.monotonic() - began > HEALTHY_SECONDS:
                pause = FIRST_PAUSE
            self._restart(status, pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _restart(self, status: int, pause: float) -> None:
        while not self._closing.is_set():
            _LOG.error(
                "the process of %s ended (%s); it is started again in %g s",
                self._graph.label, _described(status), pause,
            )  # fmt: skip
            if self._closing.wait(pause):
                return
            try:
                worker, *_ = self._start()
            except Exception as error:  # noqa: BLE001 - no memory, no threads: the next may start
                _LOG.error("%s cannot be opened again: %s", self._graph.label, error)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            with self._lock:
                if self._closing.is_set():
                    worker.end()
                else:
                    self._worker = worker
            return


@contextmanager
def _listening(worker: _Worker) -> Iterator[None]:
    """See rule 5: its next answer could be that to another request.

    Raises:
        UnavailableError: What came was no answer.
    """
    try:
        yield
    except _NO_ANSWER as error:
        worker.process.kill()
        raise _gone() from error


def _answer_of(worker: _Worker, request: Mapping[str, Any]) -> dict[str, Any]:
    send(worker.channel, request)
    answer = receive(worker.channel)
    if answer is None:
        raise _gone()
    if "error" in answer:
        _raise(answer)
    return answer


def _spawn(inherited: tuple[int, ...], memory: BoundMemory | None) -> _Worker:
    with ExitStack() as made:  # closed if anything of it fails
        ours, theirs = socket.socketpair()
        made.callback(ours.close)
        inputs, outputs = SharedFile(), SharedFile()
        made.callback(inputs.close)
        made.callback(outputs.close)
        with theirs:
            bound = () if memory is None else (memory.descriptor,)
            numbers = (theirs.fileno(), inputs.descriptor, outputs.descriptor, *bound)
            # -P: what lies in the folder that the server was started in is no library.
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", worker_module.__name__, *map(str, numbers)],
                pass_fds=(*numbers, *inherited),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        made.pop_all()
    return _Worker(process=process, channel=ours, inputs=inputs, outputs=outputs)


def _raise(answer: Mapping[str, Any]) -> NoReturn:
    raise _ERRORS.get(answer["error"], ExecutionError)(str(answer["message"]))


def _gone() -> UnavailableError:
    return UnavailableError(
        "The model's process has ended and is being started again.",
        hint="Try again in some seconds.",
    )


def _described(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
