"""How much a text model may take of a machine; the defaults of ``outpost serve``."""

from dataclasses import dataclass, field
from pathlib import Path

from outpost_runtime.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """How much a text model may take of a machine.

    Attributes:
        streams: Sequences that live at once, at most.
        memory_bytes: For rows and cached blocks together.
        queue_limit: Requests that may wait.
        adapters: Adapters that can be loaded at once.
        prefix_folder: Where remembered prompts are kept over a restart; None keeps them in
            memory only.
        prefix_key: What they are encrypted with there; None leaves them in the clear.
    """

    streams: int = 8
    memory_bytes: int = 1 << 30
    queue_limit: int = 64
    adapters: int = 8
    prefix_folder: Path | None = None
    prefix_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if min(self.streams, self.queue_limit, self.adapters) < 1:
            raise ConfigurationError(
                "A text model needs at least one stream, one place to wait, one for an adapter."
            )
