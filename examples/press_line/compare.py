"""Base and fine-tune sit the exam, as checkpoints and as served int8 bundles.

    make exam

The base gets the same chat format as the fine-tune; it has not learned the plant.
"""

import sys

from examples import bundles
from examples.demo import serving
from examples.press_line.answerers import (
    PLAIN_PROMPT,
    Answerer,
    CheckpointAnswerer,
    ServedAnswerer,
)
from examples.press_line.exam import examine
from examples.press_line.faults import load_catalogue

STORE = bundles.CACHE / "exam-store"


def main() -> int:
    """Print one line per candidate."""
    store = STORE.relative_to(bundles.ROOT)
    for name in ("gemma-3-270m", "press-line"):
        path = bundles.path_of(name, "cpu-int8").relative_to(bundles.ROOT)
        bundles.run("outpost", "add", path, "--store", store)
    with serving(STORE) as address:
        base = ServedAnswerer(address=address, model="gemma-3-270m", template=PLAIN_PROMPT)
        _report("base, int8, served", base)
        _report("fine-tune, int8, served", ServedAnswerer(address=address, model="press-line"))
    checkpoint = bundles.checkpoint("gemma3_270m")
    _report("base, checkpoint", CheckpointAnswerer.load(checkpoint))
    _report("fine-tune, checkpoint", CheckpointAnswerer.load(checkpoint, bundles.ADAPTER))
    return 0


def _report(name: str, answerer: Answerer) -> None:
    result = examine(answerer, load_catalogue().exam_questions())
    sys.stdout.write(f"{name:26} {result}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
