"""``outpost serve``."""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_runtime.cli.storing import add_store_option
from outpost_runtime.client import DEFAULT_ADDRESS
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.store import Store
from outpost_runtime.text.limits import TextLimits

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_DEFAULT_METRICS = "127.0.0.1:8000"
_DEFAULTS = TextLimits()


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    serve = commands.add_parser("serve", help="serve every active model of the store")
    serve.add_argument("--address", default=DEFAULT_ADDRESS, help="for gRPC (%(default)s)")
    serve.add_argument(
        "--metrics-address", default=_DEFAULT_METRICS, help="for Prometheus (%(default)s)"
    )
    serve.add_argument("--threads", type=int, metavar="N", help="per run (default: all cores)")
    serve.add_argument(
        "--streams",
        type=int,
        default=_DEFAULTS.streams,
        metavar="N",
        help="answers that a text model makes at once, if its memory allows (%(default)s)",
    )
    serve.add_argument(
        "--kv-memory",
        type=int,
        default=_DEFAULTS.memory_bytes >> 20,
        metavar="MIB",
        help="key/value memory of a text model, remembered prompts included (%(default)s)",
    )
    serve.add_argument(
        "--queue",
        type=int,
        default=_DEFAULTS.queue_limit,
        metavar="N",
        help="requests of a text model that may wait before others are refused (%(default)s)",
    )
    serve.add_argument(
        "--adapters",
        type=int,
        default=_DEFAULTS.adapters,
        metavar="N",
        help="adapters that a text model can have loaded at once (%(default)s)",
    )
    serve.add_argument(
        "--keep-prompts",
        type=Path,
        metavar="DIR",
        help="save remembered prompts here when stopping, unencrypted (default: never on disk)",
    )
    serve.add_argument(
        "--allow-remote-unauthenticated",
        action="store_true",
        help="listen beyond this machine; anybody who reaches the port can use the models",
    )
    add_store_option(serve)
    serve.set_defaults(run=_serve)


def _limits(parsed: argparse.Namespace) -> TextLimits:
    return TextLimits(
        streams=parsed.streams,
        memory_bytes=parsed.kv_memory << 20,
        queue_limit=parsed.queue,
        adapters=parsed.adapters,
        prefix_folder=parsed.keep_prompts,
    )


def _serve(parsed: argparse.Namespace) -> int:
    from outpost_runtime.models import open_active  # noqa: PLC0415 - loads ONNX Runtime
    from outpost_runtime.server.app import Address, serve_until_signal  # noqa: PLC0415

    addresses = Address.parse(parsed.address), Address.parse(parsed.metrics_address)
    for address in addresses:
        if not address.is_loopback and not parsed.allow_remote_unauthenticated:
            raise ConfigurationError(
                f"{address} can be reached from other machines, and nobody is asked who they are.",
                hint="Keep to 127.0.0.1, or say --allow-remote-unauthenticated.",
            )
    if parsed.threads is not None and parsed.threads < 1:
        raise ConfigurationError("--threads must be at least 1.")
    store = Store(parsed.store)
    if not store.names():
        raise ConfigurationError(
            f"The store {parsed.store} has no models.",
            hint="Bring one with 'outpost add BUNDLE --store DIR'.",
        )
    models = open_active(store, threads=parsed.threads, limits=_limits(parsed))
    if not list(models):
        models.close()
        raise ConfigurationError(
            f"None of the models in {parsed.store} could be opened.",
            hint="The messages above say why; add the bundles again.",
        )
    asyncio.run(serve_until_signal(models, *addresses))
    return 0
