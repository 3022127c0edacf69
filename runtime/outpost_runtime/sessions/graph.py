"""Graph: what a session opens.

ONNX Runtime opens a path. A graph on a disk has one, and its external data beside it. A graph that
lies nowhere as it is gets one for as long as it is being opened: the reading end of a pipe, into
which a thread writes it piece by piece. So its weights are in ONNX Runtime's memory, once, and of
ours never more than one piece.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outpost_runtime.bundle import Bundle
from outpost_runtime.contents import Contents
from outpost_runtime.errors import BundleError
from outpost_runtime.interface import AdapterInterface, TextInterface
from outpost_runtime.sessions import weight_file
from outpost_runtime.sessions.feeding import Feeder
from outpost_runtime.sessions.inlining import Inlined, inline
from outpost_runtime.sessions.weight import Region, Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """Weights that are not in the graph, in a memory file.

    Attributes:
        descriptor: The file's; None where there are no weights.
    """

    weights: tuple[Weight, ...] = ()
    descriptor: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What is there while a session opens a graph; afterwards it is gone.

    Attributes:
        path: What ONNX Runtime opens.
        pipe: The descriptor that ``path`` names, of a graph that is streamed.
        tables: What the session feeds as inputs, of its own.
        apart: What it hands over beside the graph.
    """

    path: str
    pipe: int | None = None
    tables: Outside = Outside()
    apart: Outside = Outside()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What another process must inherit to open it."""
        found = (self.pipe, self.tables.descriptor, self.apart.descriptor)
        return tuple(descriptor for descriptor in found if descriptor is not None)


class Graph(Protocol):
    """Something to open, perhaps several times."""

    @property
    def label(self) -> str:
        """Its file's name, for messages."""

    def opened(self) -> AbstractContextManager[Opening]:
        """Make it ready to be opened once, by one session.

        Raises:
            BundleError: At the begin or the end of the context: the files are not what they should
                be; what the session made of them must not be used then.
        """


class FileGraph:
    """A graph on a disk; external data is looked for beside it."""

    def __init__(self, path: Path) -> None:
        self.label = path.name
        self._path = path

    def opened(self) -> AbstractContextManager[Opening]:
        """See :class:`Graph`."""
        return nullcontext(Opening(path=str(self._path)))


class StreamedGraph:
    """A graph of contents that lie nowhere as they are.

    Args:
        bundle: Verified before.
        name: The graph's file.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.label = name
        self._bundle = bundle
        files = bundle.manifest.files
        graphs = _graphs(bundle)
        self._sizes = {n: e.size for n, e in files.items() if ".onnx" in n and n not in graphs}

    @contextmanager
    def opened(self) -> Iterator[Opening]:
        """See :class:`Graph`."""
        contents = self._bundle.contents
        with ExitStack() as stack:
            if not self._sizes:  # its weights are in it already
                feeder = stack.enter_context(Feeder(contents.pieces(self.label)))
                yield Opening(path=feeder.path, pipe=feeder.descriptor)
                return
            inlined = self._inlined()
            tables = stack.enter_context(_outside(contents, inlined.tables))
            apart = stack.enter_context(_outside(contents, inlined.apart))
            feeder = stack.enter_context(Feeder(_stream(contents, inlined)))
            yield Opening(path=feeder.path, pipe=feeder.descriptor, tables=tables, apart=apart)

    def _inlined(self) -> Inlined:
        try:
            return inline(self._bundle.read(self.label), self._sizes)
        except ValueError as error:
            place = self._bundle.contents.place(self.label)
            raise BundleError(f"{place} cannot be opened: {error}.") from error


def graph_of(bundle: Bundle, name: str) -> Graph:
    """Return a graph of a bundle by its file's name."""
    path = bundle.contents.path(name)
    return StreamedGraph(bundle, name) if path is None else FileGraph(path)


def _graphs(bundle: Bundle) -> set[str]:
    interface = bundle.manifest.interface
    if isinstance(interface, AdapterInterface):
        return set()
    if isinstance(interface, TextInterface) and interface.adapters is not None:
        return {interface.model, interface.adapters.model}
    return {interface.model}


@contextmanager
def _outside(contents: Contents, weights: tuple[Weight, ...]) -> Iterator[Outside]:
    if not weights:
        yield Outside()
        return
    descriptor = weight_file.write(weights, lambda region: _region(contents, region))
    try:
        yield Outside(weights=weights, descriptor=descriptor)
    finally:
        os.close(descriptor)


def _stream(contents: Contents, inlined: Inlined) -> Iterator[bytes]:
    for piece in inlined.pieces:
        if isinstance(piece, Region):
            yield from _region(contents, piece)
        else:
            yield piece


def _region(contents: Contents, region: Region) -> Iterator[bytes]:
    rest = region.size
    for piece in contents.pieces(region.file, start=region.start, size=region.size):
        rest -= len(piece)
        yield piece
    if rest:
        raise BundleError(f"{contents.place(region.file)} is shorter than the manifest says.")
