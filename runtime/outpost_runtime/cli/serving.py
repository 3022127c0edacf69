"""``outpost serve``."""

import argparse
import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_runtime.cli.storing import add_store_option, no_models
from outpost_runtime.client import DEFAULT_ADDRESS
from outpost_runtime.errors import ConfigurationError, NotFoundError, OutpostError
from outpost_runtime.store import Store
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.update.device import is_provisioned

if TYPE_CHECKING:
    from outpost_runtime.server.app import Doors
    from outpost_runtime.server.tls import Tls
    from outpost_runtime.settings import Settings
    from outpost_runtime.update.keeper import Keeper, KeeperLimits
    from outpost_runtime.update.policy import UpdatePolicy

    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_DEFAULT_HTTP = "127.0.0.1:8000"
_DEFAULTS = TextLimits()
_LOG = logging.getLogger(__name__)


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    serve = commands.add_parser("serve", help="serve every active model of the store")
    serve.add_argument(
        "--address", default=DEFAULT_ADDRESS, metavar="ADDRESS", help="for gRPC (%(default)s)"
    )
    serve.add_argument(
        "--http-address",
        default=_DEFAULT_HTTP,
        metavar="ADDRESS",
        help="for HTTP: the Open Inference Protocol and /metrics (%(default)s)",
    )
    serve.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="per run (default: all cores; one for models below 8 MiB)",
    )
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
        metavar="MIB",
        help="key/value memory of a text model, remembered prompts included (default: "
        f"{_DEFAULTS.memory_bytes >> 20}, or a quarter of --memory where that is less)",
    )
    serve.add_argument(
        "--queue",
        type=int,
        default=_DEFAULTS.queue_limit,
        metavar="N",
        help="requests of a model that may wait before others are refused (%(default)s)",
    )
    serve.add_argument(
        "--memory",
        type=int,
        metavar="MIB",
        help="of all models together (default: 80 %% of what is available now)",
    )
    serve.add_argument(
        "--evict-idle",
        action="store_true",
        help="unload idle models where the memory does not suffice for another one",
    )
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of single models, in TOML"
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
        help="save remembered prompts here when stopping, encrypted if this box has keys "
        "(default: never on disk)",
    )
    _add_doors(serve)
    add_store_option(serve)
    serve.set_defaults(run=_serve)


def _add_doors(serve: argparse.ArgumentParser) -> None:
    doors = serve.add_argument_group("doors to the network")
    doors.add_argument(
        "--allow-remote-unauthenticated",
        action="store_true",
        help="listen beyond this machine; anybody who reaches the port can use the models",
    )
    doors.add_argument(
        "--tls-address", metavar="ADDRESS", help="for gRPC with TLS, beside the one without it"
    )
    doors.add_argument("--tls-http-address", metavar="ADDRESS", help="for HTTPS, likewise")
    doors.add_argument(
        "--tls-certificate",
        type=Path,
        metavar="FILE",
        help="PEM, with those that vouch for it (default: the one that 'outpost provision' made)",
    )
    doors.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM, no passphrase")
    doors.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="PEM: clients of these doors must show one of these certificates, or one that they "
        "signed",
    )


def _serve(parsed: argparse.Namespace) -> int:
    from outpost_runtime.budget import MemoryBudget  # noqa: PLC0415 - takes a second to load
    from outpost_runtime.models import Models  # noqa: PLC0415
    from outpost_runtime.server.app import serve_until_signal  # noqa: PLC0415
    from outpost_runtime.update.keeper import Keeper  # noqa: PLC0415

    doors = _doors(parsed)
    store = Store(parsed.store)
    updated = is_provisioned(store.folder)
    if not store.names() and not updated:
        raise no_models(parsed.store)
    budget = MemoryBudget(None if parsed.memory is None else parsed.memory << 20)
    settings = _settings(store, parsed, budget.total)
    models = Models(store, settings.models, budget=budget, evict=parsed.evict_idle)
    keeper = Keeper(store, models, _limits(settings.update))
    keeper.begin()
    models.load_all()
    keeper.loaded()
    if not list(models) and not updated:
        keeper.stop()
        models.close()
        raise ConfigurationError(
            f"None of the models in {parsed.store} could be opened.",
            hint="The messages above say why; add the bundles again.",
        )
    stop = _keep_up(store, keeper, settings.update) if updated else keeper.stop
    keeper.start()
    try:
        asyncio.run(serve_until_signal(models, doors, before_stopping=stop))
    finally:
        stop()  # again is no harm; an address that is taken never came to the first time
    return 0


def _doors(parsed: argparse.Namespace) -> "Doors":
    from outpost_runtime.address import Address  # noqa: PLC0415 - as above
    from outpost_runtime.server.app import Doors, TlsDoors  # noqa: PLC0415

    grpc, http = Address.parse(parsed.address), Address.parse(parsed.http_address)
    said = (parsed.tls_address, parsed.tls_http_address)
    tls_grpc, tls_http = (None if text is None else Address.parse(text) for text in said)
    secured = [address for address in (tls_grpc, tls_http) if address is not None]
    open_to_all = [grpc, http] if parsed.tls_client_ca else [grpc, http, *secured]
    for address in open_to_all:
        if not address.is_loopback and not parsed.allow_remote_unauthenticated:
            raise ConfigurationError(
                f"{address} can be reached from other machines, and nobody is asked who they are.",
                hint="Keep to 127.0.0.1, ask with --tls-client-ca and --tls-address, or say "
                "--allow-remote-unauthenticated.",
            )
    if not secured:
        _check_unused(parsed)
        return Doors(grpc=grpc, http=http)
    tls_doors = TlsDoors(tls=_tls(parsed), grpc=tls_grpc, http=tls_http)
    return Doors(grpc=grpc, http=http, secured=tls_doors)


def _check_unused(parsed: argparse.Namespace) -> None:
    for name in ("certificate", "key", "client_ca"):
        if getattr(parsed, f"tls_{name}") is not None:
            raise ConfigurationError(
                f"--tls-{name.replace('_', '-')} is for doors with TLS, and there are none.",
                hint="Say where they are: --tls-address, --tls-http-address.",
            )


def _tls(parsed: argparse.Namespace) -> "Tls":
    from outpost_runtime.pem import read_pair, read_pem  # noqa: PLC0415 - as above
    from outpost_runtime.server.tls import Tls  # noqa: PLC0415

    certificate, key = read_pair(parsed.tls_certificate, parsed.tls_key) or _own(parsed.store)
    authorities = None if parsed.tls_client_ca is None else read_pem(parsed.tls_client_ca)
    return Tls(certificate=certificate, key=key, client_authorities=authorities)


def _own(store: Path) -> tuple[bytes, bytes]:
    """Return the certificate that provisioning has made, and its key."""
    from outpost_runtime.update.certificate import certificate_of, tls_key  # noqa: PLC0415 - as above
    from outpost_runtime.update.device_keys import open_keys  # noqa: PLC0415

    certificate = certificate_of(store)
    if not certificate:
        raise ConfigurationError(
            f"TLS needs a certificate, and {store} has none.",
            hint="Name one, --tls-certificate FILE --tls-key FILE; 'outpost provision' makes one.",
        )
    return certificate, tls_key(open_keys(store))


def _keep_up(store: Store, keeper: "Keeper", policy: "UpdatePolicy") -> Callable[[], None]:
    """Start the agent that brings updates; returns what stops it and then the keeper."""
    from outpost_runtime.update.agent import UpdateAgent, updating_from  # noqa: PLC0415 - as above

    agent = UpdateAgent(policy, updating_from(store.folder, policy))
    agent.start()

    def stop() -> None:
        agent.stop()
        keeper.stop()

    return stop


def _settings(store: Store, parsed: argparse.Namespace, memory_bytes: int) -> "Settings":
    from outpost_runtime.opening import ModelSettings  # noqa: PLC0415 - as above
    from outpost_runtime.settings import Settings, read_settings  # noqa: PLC0415
    from outpost_runtime.tensor.engine import TensorLimits  # noqa: PLC0415
    from outpost_runtime.update.policy import UpdatePolicy  # noqa: PLC0415

    folder, key = _kept_prompts(parsed)
    text = TextLimits(
        streams=parsed.streams,
        memory_bytes=min(_DEFAULTS.memory_bytes, memory_bytes // 4)
        if parsed.kv_memory is None
        else parsed.kv_memory << 20,
        queue_limit=parsed.queue,
        adapters=parsed.adapters,
        prefix_folder=folder,
        prefix_key=key,
    )
    default = ModelSettings(
        threads=parsed.threads, text=text, tensor=TensorLimits(queue=parsed.queue)
    )
    if parsed.config is None:
        return Settings(models=lambda _: default, update=UpdatePolicy())
    names = None if is_provisioned(store.folder) else store.names()
    return read_settings(parsed.config, default, names)


def _limits(policy: "UpdatePolicy") -> "KeeperLimits":
    from outpost_runtime.update.keeper import KeeperLimits  # noqa: PLC0415
    from outpost_runtime.update.verdict import ProbationLimits  # noqa: PLC0415

    return KeeperLimits(probation=ProbationLimits(seconds=policy.probation_seconds))


def _kept_prompts(parsed: argparse.Namespace) -> tuple[Path | None, bytes | None]:
    """Return where prompts are kept, and the key for them: a box without one is told."""
    from outpost_runtime.update.device_keys import open_keys  # noqa: PLC0415 - as above

    folder: Path | None = parsed.keep_prompts
    if folder is None:
        return None, None
    try:
        return folder, open_keys(parsed.store).derive("prompts")
    except NotFoundError:
        _LOG.warning(
            "prompts will be saved in %s UNENCRYPTED: this box has no keys; "
            "'outpost provision' makes them",
            folder,
        )
        return folder, None
    except OutpostError as error:  # what cannot be encrypted is not written
        _LOG.warning("prompts will not be saved in %s: %s", folder, error)
        return None, None
