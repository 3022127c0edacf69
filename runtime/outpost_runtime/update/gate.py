"""The gate: what a candidate must show on this very box before it serves anybody.

1. Its files have the digests of its manifest (checked while it is opened).
2. It answers its golden inputs as where it was built, each adapter that comes with it too.
3. It does so in a bounded time.
4. It does not take more memory than was set apart for it, in three tries: what the process grows
   by may be others'.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime import golden
from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, BusyError, UnavailableError
from outpost_runtime.footprint import resident_bytes
from outpost_runtime.opening import Model, ModelSettings
from outpost_runtime.text.model import TextModel

_LOOK_SECONDS = 0.2
_TOLERATED = 64 << 20
"""Bytes that a process grows by for other reasons while a candidate is tried."""


class OverrunError(BusyError):
    """A candidate took more memory than was set apart for it, if it was it that took it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLimits:
    """What a candidate may take.

    Attributes:
        seconds: For all golden inputs together.
        memory_factor: How many times the memory that was set apart for it is tolerated.
    """

    seconds: float = 300.0
    memory_factor: float = 1.25


def examine(
    model: Model,
    adapters: Sequence[str],
    *,
    expected_bytes: int,
    bytes_before: int,
    limits: GateLimits | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Ask an opened model that serves nobody whether it is what was built.

    Args:
        adapters: Names of those that it has loaded and that come with it.
        expected_bytes: What was set apart for it.
        bytes_before: Memory in use before it was opened; see :func:`bytes_in_use`.
        stop: Ends the waiting for answers.

    Raises:
        BundleError: It is not; the message says why.
        UnavailableError: ``stop`` was set.
        OverrunError: It took more memory than was set apart, if it was it that took it.
    """
    limits = limits or GateLimits()
    name = model.bundle.manifest.name
    _in_time(lambda: _ask(model, adapters), limits.seconds, name, stop)
    grown, most = bytes_in_use() - bytes_before, limits.memory_factor * expected_bytes
    if grown > most + _TOLERATED:
        raise OverrunError(  # others may have taken it: it may try again
            f"'{name}' has taken {grown >> 20} MiB, and was expected to need "
            f"{expected_bytes >> 20} MiB."
        )


def examine_adapter(
    adapter: Bundle,
    base: Bundle,
    settings: ModelSettings,
    *,
    limits: GateLimits | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Ask an adapter that comes alone whether it is what was built, on its base, opened for this.

    Args:
        adapter: Verified before, as ``base``.
        settings: How the base is opened when it is served: apart, an adapter ends nothing else.
        stop: Ends the waiting for answers.

    Raises:
        BundleError: It is not; the message says why.
        BusyError: The machine is short of memory or of files.
        UnavailableError: ``stop`` was set, or the base cannot be opened.
    """
    seconds, name = (limits or GateLimits()).seconds, adapter.manifest.name
    with golden.opened_for_adapter(adapter, base, settings) as decoder:
        _in_time(lambda: golden.check_opened_adapter(decoder, adapter), seconds, name, stop)


def bytes_in_use() -> int:
    """Return the memory that this process and those that it has started have in use.

    What several of them have mapped counts once (``Pss``, proc_pid_smaps(5)); where the kernel does
    not say that, this process counts alone.
    """
    try:
        total = _share("self")
    except OSError:
        return resident_bytes(os.getpid())
    for child in _children():
        with contextlib.suppress(OSError):  # it has ended
            total += _share(child)
    return total


def _children() -> Iterator[str]:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            yield from (thread / "children").read_text("ascii").split()


def _share(process: str) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel says how much memory a process has")


def _ask(model: Model, adapters: Sequence[str]) -> None:
    try:
        golden.check(model)
        for name in adapters:
            assert isinstance(model, TextModel)  # noqa: S101 - it has loaded adapters
            golden.check_loaded_adapter(model, name)
    except UnavailableError as error:  # its process has ended, and would each time
        name = model.bundle.manifest.name
        raise BundleError(f"'{name}' cannot run its golden inputs: {error.message}") from error


def _in_time(
    act: Callable[[], object], seconds: float, name: str, stop: threading.Event | None
) -> None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised again where somebody waits for it
            failures.append(error)

    thread = threading.Thread(target=run, name=f"gate of {name}", daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        thread.join(_LOOK_SECONDS)
        if stop is not None and stop.is_set():
            raise UnavailableError("The server is stopping; the gate begins anew with it.")
    if thread.is_alive():
        raise BundleError(f"'{name}' did not answer its golden inputs in {seconds:.0f} s.")
    if failures:
        raise failures.pop()  # a list that its traceback holds would keep it and all it has
