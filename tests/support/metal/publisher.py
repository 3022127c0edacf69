"""A publisher on this machine, with a company's commands; boxes reach it as 10.0.2.2."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_COMMAND = "import sys; from outpost_export.cli import main; sys.exit(main())"
_ENVIRONMENT = {"OUTPOST_PASSPHRASE": "only for tests, of this machine"}


class Publisher:
    """Keys and a repository in a folder.

    Attributes:
        sent: Bytes that boxes have fetched.
    """

    def __init__(self, folder: Path, *families: str) -> None:
        self.repo, self._keys = folder / "repo", folder / "keys"
        self.sent = 0
        named = [word for family in families for word in ("--family", family)]
        self._run("keys", "init", "--root-keys", "1", "--root-threshold", "1", *named)

    @property
    def root(self) -> Path:
        """The root that boxes are provisioned with."""
        return self.repo / "metadata" / "1.root.json"

    def grant(self, identity: Path) -> None:
        """Let a box read what is published."""
        self._run("keys", "grant", identity)

    def publish(self, bundle: Path, family: str) -> None:
        """Publish a bundle to every box."""
        self._run("publish", bundle, "--family", family)

    def publish_system(self, kernel: Path) -> None:
        """Publish what a build has made; the family ``system`` has to be there."""
        bundle = self.repo.parent / kernel.stem
        command("pack-system", kernel, bundle)
        self.publish(bundle, "system")

    @contextmanager
    def web(self) -> Iterator[str]:
        """Serve the repository; gives its address as a box sees it."""
        handler = functools.partial(_Counting, self, directory=str(self.repo))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://10.0.2.2:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def _run(self, *arguments: object) -> None:
        command(*arguments, "--repo", self.repo, "--keys", self._keys)


def command(*arguments: object) -> None:
    """Run ``outpost-export``, as somebody does who has no terminal."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *map(str, arguments)],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


class _Counting(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, publisher: Publisher, *arguments: Any, **named: Any) -> None:
        self._publisher = publisher
        super().__init__(*arguments, **named)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length":
            self._publisher.sent += int(value)
        super().send_header(keyword, value)

    def log_message(self, *_: object) -> None:
        pass
