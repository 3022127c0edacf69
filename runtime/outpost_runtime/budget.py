"""How much memory opened models may take together, and what happens to it afterwards."""

import gc
import threading
from pathlib import Path

from outpost_runtime import heap
from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BusyError, ConfigurationError
from outpost_runtime.interface import EmbeddingInterface, TextInterface
from outpost_runtime.opening import ModelSettings, weight_bytes
from outpost_runtime.text.memory import ROWS_REMEMBERED

_WEIGHTS_FACTOR = 2.4
"""An opened graph takes at most this many times its files: the weights, once more packed, and
some in both forms (a tied head in 4 bits)."""

_KEPT_ONCE_FACTOR = 1.3
"""The same of a graph whose embeddings lie outside, or that reads them by rows: none of its weights
is kept twice."""

_SCREENED = "screened"
"""Heads beside which the embedding is read by rows, as the exporter's recipe calls them."""

_SESSION_BYTES = 16 << 20
"""What a session takes beside its weights and what it computes."""

_PROCESS_BYTES = 25 << 20
"""What a process has of its own before it opens anything: Python, numpy and ONNX Runtime."""

RUN_BYTES = 32 << 20
"""Set apart for intermediate results at least, and for a run that has not been measured."""

_TOKENIZER_FACTOR = 3
"""What a tokenizer takes, in times its file."""

_FORMS_FACTOR = 8
"""What the tree of all its tokens takes, with which answers are kept in a form; likewise."""

_SOON = 1.0

_SHARE = 0.8
"""Of the memory that is there when a server starts, unless it is told otherwise."""


class MemoryBudget:
    """Bytes promised to models by name; safe to use from several threads.

    Args:
        total: Bytes; None is a share of what this machine has available now.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = int(available_bytes() * _SHARE) if total is None else total
        if self.total < 1:
            raise ConfigurationError("Models need some memory: allow them more with --memory.")
        self._lock = threading.RLock()
        self._promised: dict[str, int] = {}

    @property
    def free(self) -> int:
        """Bytes that are promised to nobody."""
        with self._lock:
            return self.total - sum(self._promised.values())

    def promise(self, name: str, needed: int) -> None:
        """Set memory apart for a model, in addition to what it may have already.

        Raises:
            BusyError: There is not so much left.
        """
        with self._lock:
            if needed > self.free:
                raise BusyError(
                    f"'{name}' is expected to need {needed >> 20} MiB; of the "
                    f"{self.total >> 20} MiB for models, {max(self.free, 0) >> 20} MiB are left.",
                    hint="Unload another model, or allow more with --memory.",
                )
            self._promised[name] = self._promised.get(name, 0) + needed

    def release(self, name: str, needed: int | None = None) -> None:
        """Give back what was set apart for a model: all of it, or ``needed`` bytes."""
        with self._lock:
            rest = 0 if needed is None else self._promised.get(name, 0) - needed
            if rest > 0:
                self._promised[name] = rest
            else:
                self._promised.pop(name, None)


def expected_bytes(bundle: Bundle, settings: ModelSettings, run_bytes: int = 0) -> int:
    """Return what an opened bundle takes at most.

    Args:
        run_bytes: What one run takes at most, if it is known; see ``footprint.py``.
    """
    interface, files = bundle.manifest.interface, bundle.manifest.files
    needed = _graph_bytes(bundle, settings)
    if isinstance(interface, TextInterface):
        tokenizer = files[interface.tokenizer].size * (_TOKENIZER_FACTOR + _FORMS_FACTOR)
        return needed + RUN_BYTES + _key_value_bytes(bundle, settings) + tokenizer
    if settings.apart:
        needed *= settings.tensor.concurrency
    if isinstance(interface, EmbeddingInterface):
        needed += files[interface.tokenizer].size * _TOKENIZER_FACTOR
    return needed + max(run_bytes, RUN_BYTES) * settings.tensor.concurrency


def adapter_graph_bytes(base: Bundle, settings: ModelSettings) -> int:
    """Return what a base takes in addition from its first adapter on: the same weights again."""
    return _graph_bytes(base, settings)


def trial_bytes(base: Bundle, settings: ModelSettings) -> int:
    """Return what a base takes that is opened to try one adapter: for one sequence."""
    return _graph_bytes(base, settings) + RUN_BYTES + _sequence_bytes(base)


def _sequence_bytes(bundle: Bundle) -> int:
    """Return what a text model takes for one sequence, its logits included."""
    interface, files = bundle.manifest.interface, bundle.manifest.files
    assert isinstance(interface, TextInterface)  # noqa: S101 - whoever asks knows
    weights = sum(entry.size for name, entry in files.items() if name.startswith(interface.model))
    return max(bundle.manifest.memory_bytes - weights, 0)


def _key_value_bytes(bundle: Bundle, settings: ModelSettings) -> int:
    """Return what rows and remembered prompts take: what is allowed, or all that it can use."""
    most = _sequence_bytes(bundle) * settings.text.streams * (1 + ROWS_REMEMBERED)
    return min(settings.text.memory_bytes, most or settings.text.memory_bytes)


def _graph_bytes(bundle: Bundle, settings: ModelSettings) -> int:
    factor = _KEPT_ONCE_FACTOR if _is_kept_once(bundle) else _WEIGHTS_FACTOR
    process = _PROCESS_BYTES if settings.apart else 0
    return int(weight_bytes(bundle) * factor) + _SESSION_BYTES + process


def _is_kept_once(bundle: Bundle) -> bool:
    interface, recipe = bundle.manifest.interface, bundle.manifest.provenance.recipe
    has_table = isinstance(interface, TextInterface) and interface.token_table is not None
    return has_table or recipe.get("head") == _SCREENED


def available_bytes() -> int:
    """Return the memory that this machine, or this process's control group, can still give."""
    return min(_of_machine(), _of_group())


def give_back_soon() -> None:
    """Return what closed models had to the system: now, and what their last callers hold soon."""
    _give_back()
    later = threading.Timer(_SOON, _give_back)
    later.daemon = True
    later.start()


def _give_back() -> None:
    """Return what nothing in this process uses any more.

    ONNX Runtime's sessions are part of reference cycles, and the C library keeps what an engine's
    threads have freed: of 145 MB that a model had taken, 1 % came back without this.
    """
    with heap.nothing_kept():
        gc.collect()


def _of_machine() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62


def _of_group() -> int:
    """Control groups v2, see the kernel's cgroup-v2 document: memory.max and memory.current."""
    try:
        folder = Path("/sys/fs/cgroup") / _group().lstrip("/")
        most = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if most == "max" else max(int(most) - used, 0)


def _group() -> str:
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        number, _, name = line.split(":", 2)
        if number == "0":
            return name
    return ""
