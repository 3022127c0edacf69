"""A publisher, the web server of its repository, and one box, all on this machine.

What a company has in three places lies below one folder here:

    keys/    the publisher's, behind a passphrase
    repo/    static files, as a web server or a bucket has them
    store/   the box's
"""

import dataclasses
import functools
import http.server
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from outpost_runtime.bundle import describe_file, read_bundle, write_manifest

from examples import bundles

_SPOILED_BYTES = 1 << 20


class Site:
    """The three places.

    Args:
        folder: Made anew.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shown = folder.relative_to(bundles.ROOT)
        self.folder = folder
        self.store = folder / "store"
        self._keys, self._repo = shown / "keys", shown / "repo"
        os.environ.setdefault("OUTPOST_PASSPHRASE", secrets.token_urlsafe())

    def make_publisher(self, families: Sequence[str]) -> None:
        """Make keys and an empty, signed repository."""
        named = [word for family in families for word in ("--family", family)]
        self._export("keys", "init", "--root-keys", "1", "--root-threshold", "1", *named)

    def publish(self, bundle: Path, family: str) -> None:
        """Cut, encrypt, sign and publish a bundle."""
        self._export("publish", bundle.relative_to(bundles.ROOT), "--family", family)

    def make_box(self, address: str) -> None:
        """Provision a box, and let it read what is published."""
        store = self.store.relative_to(bundles.ROOT)
        root = self._repo / "metadata" / "1.root.json"
        model = ("--model", "press-terminal")
        bundles.run(
            "outpost", "provision", "--root", root, "--repo", address, *model, "--store", store
        )
        self._export("keys", "grant", store / "identity.json")

    @contextmanager
    def web(self) -> Iterator[str]:
        """Serve the repository on a free port of this machine; gives its address."""
        handler = functools.partial(_Quiet, directory=str(bundles.ROOT / self._repo))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def _export(self, command: str, *arguments: object) -> None:
        places = ("--repo", self._repo, "--keys", self._keys)
        bundles.run("outpost-export", command, *arguments, *places)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: the commands do."""


def spoil(bundle: Path, folder: Path, version: str) -> Path:
    """Copy a bundle as a build machine with bad memory would have left it.

    Its digests are right; what they are of is not what was measured.
    """
    copy = Path(shutil.copytree(bundle, folder))
    manifest = read_bundle(copy).manifest
    weights = copy / "model.onnx.data"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        data = file.read(_SPOILED_BYTES)
        file.seek(-len(data), os.SEEK_CUR)
        file.write(bytes(byte ^ 0x80 for byte in data))
    files = {**manifest.files, weights.name: describe_file(weights)}
    write_manifest(copy, dataclasses.replace(manifest, version=version, files=files))
    return copy
