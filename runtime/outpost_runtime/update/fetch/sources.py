"""From what an operator writes to a fetcher."""

from pathlib import Path

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.folder import FolderFetcher
from outpost_runtime.update.fetch.http import HttpFetcher


def open_source(
    location: str, *, ca_bundle: Path | None = None, window: int | None = None
) -> Fetcher:
    """Return a fetcher for a URL (``https://…``, ``http://…``) or a folder.

    Args:
        window: Of connections; see :class:`HttpFetcher`.

    Raises:
        ConfigurationError: The URL or the certificates are of no use, or nothing is named.
    """
    if not location:
        raise ConfigurationError(
            "A repository has an address or a folder.", hint="Name one with --repo."
        )
    if "://" in location:
        return HttpFetcher(location, ca_bundle=ca_bundle, window=window)
    return FolderFetcher(Path(location))
