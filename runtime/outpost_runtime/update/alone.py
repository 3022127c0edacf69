"""The gate without a server: candidates are tried by the command that brought them."""

import time
from collections.abc import Callable

from outpost_runtime.models import Models
from outpost_runtime.store import Store
from outpost_runtime.update.keeper import Keeper

_GATE_SECONDS = 600.0
_LOOK_AGAIN_SECONDS = 0.2


def pass_gates(store: Store, wait: Callable[[float], None] = time.sleep) -> None:
    """Try every candidate of a store now: here, or in the server that keeps the store.

    Returns when no candidate waits any more, or after ten minutes.

    Raises:
        StoreError: The store cannot be written.
    """
    models = Models(store)
    keeper = Keeper(store, models)
    try:
        if keeper.may_move():
            keeper.follow_nothing()
            keeper.round()
            return
        until = time.monotonic() + _GATE_SECONDS
        while time.monotonic() < until and _waiting(store):
            wait(_LOOK_AGAIN_SECONDS)
    finally:
        keeper.stop()
        models.close()


def _waiting(store: Store) -> bool:
    return any(slot.candidate is not None for slot in store.model_slots().values())
