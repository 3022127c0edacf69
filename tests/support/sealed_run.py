"""Open sealed bundles, use them and close them: ``python -m tests.support.sealed_run FOLDER``.

The folder has one folder for each bundle, with a release and its blocks.
"""

import sys
from pathlib import Path

from outpost_runtime import golden
from outpost_runtime.bundle import Bundle, verify
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.text.constraint import ConstraintKind
from outpost_runtime.text.model import TextModel
from outpost_runtime.update.release import encode_release, parse_release
from outpost_runtime.update.sealed import open_sealed

from tests.support.sealed import KEY, Blocks, FolderBlocks, released

RELEASE, BLOCKS = "release.json", "blocks"


def ship(bundle, folder: Path, *, block_bytes: int) -> None:
    """Put a bundle's release and blocks into a folder."""
    blocks = Blocks()
    release = released(bundle, blocks, block_bytes=block_bytes)
    FolderBlocks(folder / BLOCKS).keep(blocks)
    (folder / RELEASE).write_bytes(encode_release(release))


def shipped(folder: Path) -> Bundle:
    """Return what was shipped into a folder."""
    release = parse_release((folder / RELEASE).read_bytes())
    return open_sealed(release, FolderBlocks(folder / BLOCKS).read, KEY)


def main() -> None:
    """Do everything that a box does with a bundle."""
    found = [shipped(folder) for folder in sorted(Path(sys.argv[1]).iterdir())]
    for bundle in found:
        verify(bundle)
    models = [b for b in found if not isinstance(b.manifest.interface, AdapterInterface)]
    adapters = [b for b in found if b not in models]
    for bundle in models:
        model = open_model(bundle)
        if isinstance(model, TextModel):
            for adapter in adapters:
                model.load_adapter(adapter)
                golden.check_adapter(adapter, bundle)
            model.constraint(ConstraintKind.REGEX, "[a-z]+")
        else:
            open_model(bundle, ModelSettings(threads=1, apart=True)).close()
        golden.check(model)
        model.close()
    sys.stdout.write(f"{len(models)} models, {len(adapters)} adapters\n")


if __name__ == "__main__":
    main()
