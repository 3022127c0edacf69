"""Graphs that reach ONNX Runtime as a stream: nothing is lost or made up, and nothing hangs."""

import dataclasses
import functools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.bundle import read_bundle
from outpost_runtime.contents import FolderContents
from outpost_runtime.errors import BundleError
from outpost_runtime.sessions import graph as graph_module
from outpost_runtime.sessions.feeding import Feeder
from outpost_runtime.sessions.graph import FileGraph, StreamedGraph, graph_of
from outpost_runtime.sessions.inlining import Region, inline
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.sessions.process import ProcessSession
from outpost_runtime.sessions.wire_form import delimited, fields, head, varint_field

from tests.support.fixtures import CLASSIFIER, DECODER, EMBEDDER

GRAPHS = [
    (DECODER, "model.onnx"),
    (DECODER, "model-adapters.onnx"),
    (EMBEDDER, "model.onnx"),
    (CLASSIFIER, "model.onnx"),
]
SIZES = {"model.onnx.data": 1 << 20}


class Nowhere(FolderContents):
    """A folder that does not say where it is."""

    def path(self, name):  # noqa: ARG002 - the contract's
        return None

    def pieces(self, name, *, start=0, size=None):
        data = (self.folder / name).read_bytes()[start:][:size]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]


def _streamed(folder):
    return dataclasses.replace(read_bundle(folder), contents=Nowhere(folder))


def _run(session):
    feeds = {spec.name: np.ones((2, 5), spec.dtype) for spec in session.inputs}
    return {name: array.tobytes() for name, array in session.run(feeds).items()}


def _sizes(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _inside(message, *path):
    for number in path:
        message = next(f.content for f in fields(memoryview(message)) if f.number == number)
    return bytes(message)


@pytest.mark.parametrize(("folder", "name"), GRAPHS, ids=lambda v: getattr(v, "name", v))
def test_every_external_byte_is_in_the_stream_or_in_a_table_once(folder, name):
    inlined = inline((folder / name).read_bytes(), _sizes(folder))
    regions = [piece for piece in inlined.pieces if isinstance(piece, Region)]
    regions += [table.region for table in inlined.tables]
    starts = sorted(region.start for region in regions)
    assert len(starts) == len(set(starts))
    assert {region.file for region in regions} == {"model.onnx.data"}
    total = sum(region.size for region in regions)
    size = (folder / "model.onnx.data").stat().st_size
    assert size - 4096 * len(regions) < total <= size  # between tensors there is padding
    assert inlined.apart == ()


@pytest.mark.parametrize(("folder", "name"), GRAPHS, ids=lambda v: getattr(v, "name", v))
def test_a_streamed_session_has_the_inputs_and_outputs_of_the_file(folder, name):
    plain, streamed = OrtSession(folder / name), OrtSession(StreamedGraph(_streamed(folder), name))
    assert (streamed.inputs, streamed.outputs) == (plain.inputs, plain.outputs)


@pytest.mark.parametrize("kind", [OrtSession, ProcessSession])
def test_weights_that_do_not_fit_into_one_message_are_handed_over_beside_it(kind, monkeypatch):
    graph = (CLASSIFIER / "model.onnx").read_bytes()
    most = len(graph) + 20_000
    small = functools.partial(inline, most_bytes=most)
    inlined = small(graph, _sizes(CLASSIFIER))
    inside = sum(p.size for p in inlined.pieces if isinstance(p, Region))
    assert len(inlined.apart) > 2
    assert inside <= 20_000
    monkeypatch.setattr(graph_module, "inline", small)
    session = kind(StreamedGraph(_streamed(CLASSIFIER), "model.onnx"), threads=1)
    assert _run(session) == _run(OrtSession(CLASSIFIER / "model.onnx", threads=1))
    session.close()


def test_a_graph_with_its_weights_inside_is_streamed_as_it_is(tmp_path):
    sizes = _sizes(CLASSIFIER)
    data = (CLASSIFIER / "model.onnx.data").read_bytes()
    pieces = inline((CLASSIFIER / "model.onnx").read_bytes(), sizes).pieces
    whole = b"".join(
        data[p.start : p.start + p.size] if isinstance(p, Region) else p for p in pieces
    )
    (tmp_path / "model.onnx").write_bytes(whole)
    bundle = read_bundle(CLASSIFIER)
    files = {n: e for n, e in bundle.manifest.files.items() if n != "model.onnx.data"}
    bundle = dataclasses.replace(
        bundle,
        manifest=dataclasses.replace(bundle.manifest, files=files),
        contents=Nowhere(tmp_path),
    )
    streamed = OrtSession(StreamedGraph(bundle, "model.onnx"))
    names = [spec.name for spec in OrtSession(tmp_path / "model.onnx").inputs]
    assert [spec.name for spec in streamed.inputs] == names


def test_a_graph_on_a_disk_is_opened_where_it_lies():
    graph = graph_of(read_bundle(CLASSIFIER), "model.onnx")
    assert isinstance(graph, FileGraph)
    with graph.opened() as opening:
        assert opening.path == str(CLASSIFIER / "model.onnx")
        assert opening.descriptors == ()


def _tensor(name, start, size, *, shape=(4, 4), file="model.onnx.data"):
    entries = {"location": file, "offset": str(start), "length": str(size)}
    parts = [varint_field(1, number) for number in shape]
    parts += [varint_field(2, 1), delimited(8, name.encode())]
    parts += [
        delimited(13, delimited(1, key.encode()) + delimited(2, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join([*parts, varint_field(14, 1)])


def _node(operator, *inputs, attributes=b""):
    parts = [delimited(1, name.encode()) for name in inputs]
    return delimited(1, b"".join([*parts, delimited(4, operator.encode()), attributes]))


def _model(*nodes, tensors=(("w", 0, 64),), more=b""):
    initializers = [delimited(5, _tensor(*tensor)) for tensor in tensors]
    return delimited(7, b"".join([*nodes, *initializers, more]))


@pytest.mark.parametrize(
    "model",
    [
        _model(_node("MatMul", "x", "w")),
        _model(_node("Gather", "w", "i"), _node("MatMul", "x", "w")),
        _model(_node("Gather", "x", "w")),
        _model(_node("Gather", "w", "i") + b"", more=delimited(12, delimited(1, b"w"))),
        _model(_node("Gather", "w", "i"), more=delimited(11, delimited(1, b"w"))),
        _model(
            _node("Gather", "w", "i"),
            _node("If", "c", attributes=delimited(5, delimited(6, _node("Add", "w", "w")))),
        ),
        _model(_node("Gather", "w", "i"), tensors=(("w", 0, 64), ("v", 64, 64 * 100))),
        _model(_node("Gather", "w", "i"), tensors=(("w", 0, 60),)),
    ],
    ids=[
        "multiplied",
        "gathered and multiplied",
        "as indices",
        "an output",
        "an input already",
        "in a branch",
        "small",
        "of another length than its shape",
    ],
)
def test_what_is_not_only_gathered_stays_a_weight(model):
    inlined = inline(model, SIZES)
    assert inlined.tables == ()
    assert any(isinstance(piece, Region) for piece in inlined.pieces)


def test_what_is_only_gathered_becomes_an_input_of_its_type_and_shape():
    inlined = inline(_model(_node("Gather", "w", "i")), SIZES)
    (table,) = inlined.tables
    assert (table.name, table.shape, table.dtype) == ("w", (4, 4), np.float32)
    graph = _inside(b"".join(inlined.pieces), 7)
    assert _inside(graph, 11, 1) == b"w"
    assert not any(field.number == 5 for field in fields(memoryview(graph)))


def test_weights_in_branches_and_constants_are_put_in_their_places():
    branch = delimited(5, _tensor("inner", 64, 16))
    constant = delimited(5, delimited(5, _tensor("constant", 128, 32)))
    inlined = inline(
        _model(
            _node("If", "c", attributes=delimited(5, delimited(6, branch))),
            _node("Constant", attributes=constant),
        ),
        SIZES,
    )
    regions = [(piece.start, piece.size) for piece in inlined.pieces if isinstance(piece, Region)]
    assert regions == [(64, 16), (128, 32), (0, 64)]
    whole = b"".join(bytes([7]) * p.size if isinstance(p, Region) else p for p in inlined.pieces)
    assert _inside(whole, 7, 1, 5, 6, 5, 9) == bytes([7]) * 16  # lengths around it are right, too


@pytest.mark.parametrize(
    "tensor",
    [("w", 0, 2 << 20), ("w", 1 << 20, 1), ("w", -1, 4)],
    ids=["too long", "behind the end", "before the begin"],
)
def test_weights_outside_of_their_file_are_refused(tensor):
    with pytest.raises(ValueError, match="behind the end"):
        inline(_model(tensors=(tensor,)), SIZES)


def test_weights_in_a_file_that_the_bundle_has_not_are_refused():
    outside = delimited(7, delimited(5, _tensor("w", 0, 64, file="../../etc/passwd")))
    with pytest.raises(ValueError, match="which is not there"):
        inline(outside, SIZES)


_GRAPH = (CLASSIFIER / "model.onnx").read_bytes()


@given(st.data())
def test_a_changed_graph_is_refused_or_reads_nothing_but_its_files(data):
    changed = bytearray(_GRAPH)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    sizes = _sizes(CLASSIFIER)
    try:
        inlined = inline(bytes(changed[:cut] if cut % 2 else changed), sizes)
    except ValueError:
        return
    for region in (piece for piece in inlined.pieces if isinstance(piece, Region)):
        assert 0 <= region.start <= region.start + region.size <= sizes[region.file]


@given(st.binary(max_size=200))
def test_garbage_is_no_graph_and_no_other_error(garbage):
    try:
        inlined = inline(garbage, SIZES)
    except ValueError:
        return
    assert not inlined.apart


@given(st.integers(1, 1 << 20), st.integers(0, (1 << 64) - 1), st.binary(max_size=300))
def test_fields_that_are_written_are_read(number, value, content):
    message = varint_field(number, value) + head(number + 1, len(content)) + content
    first, second = fields(memoryview(message))
    assert (first.number, first.number_value) == (number, value)
    assert (second.number, bytes(second.content)) == (number + 1, content)


def test_branches_without_end_are_refused():
    inner = b""
    for _ in range(3000):
        inner = delimited(1, delimited(5, delimited(6, inner)))
    with pytest.raises(ValueError, match="no graph"):
        inline(delimited(7, inner), SIZES)


class Failing(Nowhere):
    """Fails in the middle of the weights."""

    def pieces(self, name, *, start=0, size=None):
        if name == "model.onnx.data" and start > 50_000:
            raise BundleError("the disk is gone")
        yield from super().pieces(name, start=start, size=size)


class Short(Nowhere):
    """Ends too early."""

    def pieces(self, name, *, start=0, size=None):
        size = size if size is None or start < 50_000 else size - 1
        yield from super().pieces(name, start=start, size=size)


@pytest.mark.parametrize(
    ("contents", "told"), [(Failing, "the disk is gone"), (Short, "shorter than")]
)
@pytest.mark.parametrize("kind", [OrtSession, ProcessSession])
def test_what_fails_on_the_way_is_the_error_and_not_what_onnx_runtime_made_of_it(
    kind, contents, told
):
    bundle = dataclasses.replace(read_bundle(CLASSIFIER), contents=contents(CLASSIFIER))
    before = set(threading.enumerate())
    with pytest.raises(BundleError, match=told):
        kind(StreamedGraph(bundle, "model.onnx"))
    assert set(threading.enumerate()) <= before


def test_a_reader_that_gives_up_ends_the_feeder():
    with Feeder(bytes(1 << 20) for _ in range(64)) as feeder:
        Path(feeder.path).open("rb").close()


def test_a_reader_that_never_comes_ends_the_feeder():
    with Feeder(bytes(1 << 20) for _ in range(64)) as feeder:
        assert os.fstat(feeder.descriptor)


def test_what_is_fed_is_what_is_read():
    pieces = [os.urandom(size) for size in (0, 1, 70_000, 3 << 20)]
    with Feeder(pieces) as feeder:
        assert Path(feeder.path).read_bytes() == b"".join(pieces)
