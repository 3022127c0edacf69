"""``outpost.toml``: how single models are served, and when the box updates.

What stands here goes before the command's options; for ``[update]`` see ``update/policy.py``.

::

    [models.my-classifier]
    threads = 1                      # of one run
    concurrency = 2                  # runs at the same time
    queue = 64                       # requests that may wait
    max_queue_delay_ms = 2.0         # a request waits so long for others to share its run
    preferred_batch_sizes = [8, 16]

    [models.somebody-elses]
    apart = true                     # in a process of its own

    [models.my-assistant]
    streams = 4                      # answers at once
    kv_memory_mib = 512
    adapters = 8

Unknown keys are errors.
"""

import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from outpost_runtime.documents import Reader
from outpost_runtime.errors import ConfigurationError, InvalidInputError
from outpost_runtime.opening import ModelSettings
from outpost_runtime.update.policy import UpdatePolicy, read_policy

MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the file says.

    Attributes:
        models: How a model is opened, by its name.
        update: When the box updates.
    """

    models: Callable[[str], ModelSettings]
    update: UpdatePolicy


def read_settings(
    path: Path, default: ModelSettings, names: Collection[str] | None = None
) -> Settings:
    """Read the file.

    Args:
        default: What holds where the file says nothing of a model.
        names: Models that there are, so that a table for another one is a mistake; None where
            others may come.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than {MAX_BYTES} bytes.")
        reader = Reader(tomllib.loads(text.decode()), path=str(path))
        tables = reader.optional("models", reader.table)
        models = tables.named_tables() if tables else {}
        found = {name: _settings(table, default) for name, table in models.items()}
        update = reader.optional("update", lambda key: read_policy(reader.table(key)))
        reader.end()
        if names is not None and (strangers := sorted(found.keys() - set(names))):
            raise ConfigurationError(
                f"{path} has settings for models that the store does not have: "
                f"{', '.join(strangers)}.",
                hint=f"It has {', '.join(sorted(names)) or 'none'}.",
            )
    except (OSError, ValueError) as error:  # of TOML and of UTF-8
        raise ConfigurationError(
            f"{path} cannot be read: {error}.", hint="Name a TOML file that you may read."
        ) from error
    except InvalidInputError as error:
        raise ConfigurationError(error.message, hint="Correct it and start again.") from error
    return Settings(models=lambda name: found.get(name, default), update=update or UpdatePolicy())


def _settings(reader: Reader, default: ModelSettings) -> ModelSettings:
    tensor, text = default.tensor, default.text
    threads = reader.optional("threads", reader.integer)
    preferred = reader.optional("preferred_batch_sizes", lambda key: reader.list_of(key, int))
    settings = ModelSettings(
        threads=default.threads if threads is None else threads,
        apart=reader.boolean("apart", default=default.apart),
        tensor=replace(
            tensor,
            concurrency=reader.integer("concurrency", tensor.concurrency),
            queue=reader.integer("queue", tensor.queue),
            delay=reader.number("max_queue_delay_ms", tensor.delay * 1e3) / 1e3,
            preferred=tensor.preferred if preferred is None else tuple(preferred),
        ),
        text=replace(
            text,
            streams=reader.integer("streams", text.streams),
            memory_bytes=reader.integer("kv_memory_mib", text.memory_bytes >> 20) << 20,
            adapters=reader.integer("adapters", text.adapters),
        ),
    )
    reader.end()
    return settings
