"""A process that carries a transfer out, to be killed in the middle of it.

python -m tests.support.fetching_child URL BLOCKS_FOLDER WORKERS SIZE...
"""

import sys
import threading
from pathlib import Path

from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.planning import Holdings, plan_update
from outpost_runtime.update.transfer import transfer

from tests.support.shipments import make_block, ship_noise

PLENTY = 1 << 40


def main(url: str, folder: str, workers: str, *sizes: str) -> None:
    release = ship_noise(map(int, sizes)).release
    store = BlockStore(Path(folder))
    holdings = Holdings(blocks=store.sizes(), partials=store.partials(), free=PLENTY, spare=0)
    plan = plan_update([release], [], holdings, [])
    fetchers = [HttpFetcher(url) for _ in range(int(workers))]
    done = transfer(plan, store, fetchers, make_block, stop=threading.Event())
    assert done.finished
    sys.stdout.write(f"{done.bytes}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
