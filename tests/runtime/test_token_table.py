"""Rows of tokens: those of the file, wherever it lies, read once while they are kept."""

from dataclasses import replace

import numpy as np
import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.contents import FolderContents
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import TextInterface, TokenTable
from outpost_runtime.manifest import encode_manifest, parse_manifest
from outpost_runtime.tensors import TensorSpec
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.token_table import ROWS, TokenRows, with_table

from tests.support import toy
from tests.support.fixtures import DECODER

_WIDTH = 24
_PLACE = TokenTable(file="weights", start=100, tokens=toy.VOCABULARY, row_bytes=_WIDTH)
_VALUES = np.random.default_rng(3).integers(0, 256, (toy.VOCABULARY, _WIDTH), np.uint8)
_BYTES = bytes(100) + _VALUES.tobytes() + bytes(7)


class _NowhereContents:
    """A file that has no place on a disk; counts how often it is read."""

    def __init__(self, data=_BYTES):
        self.data = data
        self.reads = 0

    def place(self, name):
        return f"{name} of a test"

    def pieces(self, name, *, start=0, size=None):
        assert name == "weights"
        self.reads += 1
        found = self.data[start : start + size]
        yield from (found[:10], found[10:])

    def path(self, _):
        return None


class _TableToy(toy.ToySession):
    """The toy, which also wants the rows of its tokens."""

    def __init__(self, width=_WIDTH):
        super().__init__()
        rows = TensorSpec(name=ROWS, datatype="UINT8", shape=(None, None, width))
        self.inputs = (*self.inputs, rows)
        self.closed = False

    def bind(self, inputs, outputs):
        return _CheckedBinding(self, inputs, outputs)

    def run(self, feeds):
        assert (feeds[ROWS] == _VALUES[feeds["input_ids"]]).all()
        return {"logits": feeds["input_ids"]}

    def close(self):
        self.closed = True


class _CheckedBinding(toy.ToyBinding):
    def run(self):
        assert (self._arrays[ROWS] == _VALUES[self._arrays["input_ids"]]).all()
        super().run()


@pytest.fixture(params=["folder", "nowhere"])
def contents(request, tmp_path):
    if request.param == "nowhere":
        return _NowhereContents()
    (tmp_path / "weights").write_bytes(_BYTES)
    return FolderContents(tmp_path)


def test_a_run_has_the_rows_of_its_tokens(contents):
    decoder = Decoder(with_table(_TableToy(), TokenRows(contents, _PLACE)), rows=3, max_length=64)
    plain = Decoder(toy.ToySession(), rows=3, max_length=64)
    for each in (decoder, plain):
        for row, tokens in enumerate(([5, 6, 7, 5], [63], [0, 1])):
            each.prefill(row, tokens, 0)
    steps = [([9, 10], [4, 1]), ([11], [5]), ([11, 9, 60], [6, 2, 2])]
    for tokens, lengths in steps:
        assert (decoder.decode(tokens, lengths) == plain.decode(tokens, lengths)).all()


def test_a_free_run_has_them_too(contents):
    session = with_table(_TableToy(), TokenRows(contents, _PLACE))
    ids = np.array([[3, 4, 3], [63, 0, 1]])
    assert (session.run({"input_ids": ids})["logits"] == ids).all()
    assert ROWS not in {spec.name for spec in session.inputs}


@pytest.mark.parametrize("token", [-1, toy.VOCABULARY])
def test_a_token_that_does_not_exist_is_refused(contents, token):
    session = with_table(_TableToy(), TokenRows(contents, _PLACE))
    with pytest.raises(InvalidInputError, match="64 tokens"):
        session.run({"input_ids": np.array([[token]])})
    with pytest.raises(InvalidInputError, match="64 tokens"):
        Decoder(session, rows=1, max_length=8).prefill(0, [token], 0)


def test_a_row_is_decrypted_once_while_it_is_kept():
    contents = _NowhereContents()
    table = TokenRows(contents, _PLACE, kept_rows=2)
    out = np.zeros((3, _WIDTH), np.uint8)
    for ids, reads in (([1, 2, 1], 2), ([2, 2, 1], 2), ([3, 3, 3], 3), ([1, 1, 1], 4)):
        table.look_up(np.array(ids), out)
        assert (out == _VALUES[ids]).all()
        assert contents.reads == reads


def test_a_file_that_ends_early_is_damaged():
    table = TokenRows(_NowhereContents(_BYTES[:-30]), _PLACE)
    with pytest.raises(BundleError, match="weights of a test is shorter"):
        table.look_up(np.array([63]), np.zeros((1, _WIDTH), np.uint8))


def test_a_graph_that_wants_other_rows_is_refused(contents):
    session = _TableToy(width=_WIDTH + 1)
    with pytest.raises(BundleError, match=f"lacks the input .*{ROWS}"):
        with_table(session, TokenRows(contents, _PLACE))
    assert session.closed


def _manifest(**changes):
    manifest = read_bundle(DECODER).manifest
    assert isinstance(manifest.interface, TextInterface)
    size = manifest.files["model.onnx"].size
    fields = {"file": "model.onnx", "start": size - 640, "tokens": 10, "row_bytes": 64} | changes
    table = TokenTable(**fields)
    return replace(manifest, interface=replace(manifest.interface, token_table=table))


def test_a_manifest_says_where_the_table_lies():
    manifest = _manifest()
    assert parse_manifest(encode_manifest(manifest)) == manifest
    assert b"token_table" not in encode_manifest(read_bundle(DECODER).manifest)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": 11}, "ends before its token_table"),
        ({"start": -1}, "must not be negative"),
        ({"row_bytes": 0}, "must be at least 1"),
        ({"file": "elsewhere"}, "does not list 'elsewhere'"),
    ],
)
def test_a_manifest_with_a_table_elsewhere_is_refused(changes, problem):
    with pytest.raises(BundleError, match=problem):
        parse_manifest(encode_manifest(_manifest(**changes)))
