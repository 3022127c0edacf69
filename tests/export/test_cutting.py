"""Where tensors lie in files, and where these are cut."""

import json
import mmap

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from outpost_export.publishing.cutting import LARGE_BYTES, cuts
from outpost_export.publishing.layout import Tensor, tensors_of
from outpost_runtime.update.elements import Kind
from outpost_runtime.update.levels import Rows
from outpost_runtime.update.release import BLOCK_BYTES

from tests.support import onnx_models
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER
from tests.support.releases import tuned, weights, write_graph


def _files(folder):
    return {path.name: memoryview(path.read_bytes()) for path in folder.iterdir()}


def _blocks(folder, name):
    files = _files(folder)
    return [
        bytes(files[name][cut.start : cut.end])
        for cut in cuts(len(files[name]), tensors_of(files)[name])
    ]


def _assert_tiles(found, size):
    assert [cut.start for cut in found] == [0, *(cut.end for cut in found)][: len(found)]
    assert (found[-1].end if found else 0) == size
    assert all(0 < cut.size <= BLOCK_BYTES for cut in found)


@st.composite
def _layouts(draw):
    """Tensors in order, with gaps; some overlap."""
    sizes = st.one_of(st.integers(1, 200), st.integers(1, 3 * BLOCK_BYTES))
    tensors, at = [], 0
    for _ in range(draw(st.integers(0, 12))):
        at = max(0, at + draw(st.sampled_from([0, 0, 0, 7, 4096, LARGE_BYTES, -5])))
        size = draw(sizes)
        kind = draw(st.sampled_from(list(Kind)))
        width = draw(st.none() | st.integers(1, 5000))
        tensors.append(Tensor(start=at, size=size, kind=kind, width=width))
        at += size
    tensors.sort(key=lambda tensor: tensor.start)
    end = max((tensor.start + tensor.size for tensor in tensors), default=0)
    return end + draw(st.integers(0, 2 * BLOCK_BYTES)), tensors


@given(layout=_layouts())
def test_cuts_cover_a_file_from_its_first_byte_to_its_last(layout):
    size, tensors = layout
    found = cuts(size, tensors)
    _assert_tiles(found, size)
    assert found == cuts(size, tensors)


@given(layout=_layouts())
def test_large_tensors_begin_a_block_and_rows_are_counted_from_there(layout):
    size, tensors = layout
    starts = {cut.start: cut for cut in cuts(size, tensors)}
    end = 0
    for tensor in tensors:
        if tensor.start < end:
            continue  # it overlaps
        end = tensor.start + tensor.size
        if tensor.size < LARGE_BYTES:
            continue
        for at in range(0, tensor.size, BLOCK_BYTES):
            cut = starts[tensor.start + at]
            assert cut.kind is tensor.kind
            if tensor.width is not None:
                numbers = at * 2 if tensor.kind is Kind.INT4 else at // tensor.kind.bytes
                assert cut.rows == Rows(width=tensor.width, first=numbers % tensor.width)


@given(layout=_layouts(), shift=st.integers(1, 200_000))
def test_what_comes_before_a_large_tensor_moves_no_cut_behind_it(layout, shift):
    size, tensors = layout
    large = [tensor for tensor in tensors if tensor.size >= LARGE_BYTES]
    if not large or any(
        tensor.start < large[0].start + large[0].size
        for tensor in tensors
        if tensor is not large[0]
    ):
        return
    moved = [
        Tensor(start=t.start + shift, size=t.size, kind=t.kind, width=t.width) for t in tensors
    ]
    begin = large[0].start
    before = [cut.start - begin for cut in cuts(size, tensors) if cut.start >= begin]
    after = [c.start - begin - shift for c in cuts(size + shift, moved) if c.start >= begin + shift]
    assert before == after


def test_small_neighbours_share_a_block_until_it_is_large():
    tensors = [
        Tensor(start=at * 4000, size=4000, kind=Kind.FLOAT32, width=None) for at in range(40)
    ]
    found = cuts(160_000, tensors)
    assert [cut.size for cut in found] == [68_000, 68_000, 24_000]
    assert {cut.kind for cut in found} == {Kind.FLOAT32}


def test_padding_joins_the_block_before_it():
    tensors = [
        Tensor(start=0, size=100_000, kind=Kind.INT8, width=None),
        Tensor(start=102_400, size=100_000, kind=Kind.INT8, width=None),
    ]
    assert [cut.size for cut in cuts(202_400, tensors)] == [102_400, 100_000]


def test_padding_never_makes_a_block_too_large():
    tensors = [
        Tensor(start=0, size=BLOCK_BYTES, kind=Kind.INT8, width=None),
        Tensor(start=BLOCK_BYTES + 64, size=BLOCK_BYTES, kind=Kind.INT8, width=None),
    ]
    sizes = [cut.size for cut in cuts(2 * BLOCK_BYTES + 64, tensors)]
    assert sizes == [BLOCK_BYTES, 64, BLOCK_BYTES]


def test_an_empty_file_has_no_blocks():
    assert cuts(0, []) == []


@pytest.mark.parametrize("folder", [DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS], ids=lambda f: f.name)
def test_every_file_of_a_real_bundle_is_covered(folder):
    files = _files(folder)
    tensors = tensors_of(files)
    assert set(tensors) == set(files)
    for name, data in files.items():
        _assert_tiles(cuts(len(data), tensors[name]), len(data))
        assert bool(tensors[name]) == name.endswith((".onnx", ".data", ".safetensors"))


def test_two_graphs_of_one_decoder_share_their_tensors():
    files = _files(DECODER)
    found = tensors_of(files)["model.onnx.data"]
    alone = tensors_of({n: d for n, d in files.items() if n != "model-adapters.onnx"})
    assert found == alone["model.onnx.data"]
    assert sum(tensor.size for tensor in found) == len(files["model.onnx.data"])
    assert {tensor.kind for tensor in found} == {Kind.FLOAT32}


def test_mapped_files_are_read_in_place_and_let_go():
    with (DECODER / "model.onnx").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with memoryview(mapped) as view:
            assert tensors_of({"model.onnx": view})["model.onnx"]
        mapped.close()


@pytest.mark.parametrize("external", [None, "weights/model.data"])
def test_every_tensor_of_a_graph_is_found_where_its_bytes_are(tmp_path, external):
    arrays = weights()
    (tmp_path / "weights").mkdir()
    write_graph(tmp_path / "model.onnx", arrays, external=external)
    name = external or "model.onnx"
    files = {
        path.relative_to(tmp_path).as_posix(): memoryview(path.read_bytes())
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    found = tensors_of(files)[name]
    data = {bytes(files[name][t.start : t.start + t.size]): t for t in found}
    for array in arrays.values():
        tensor = data[array.tobytes()]
        assert tensor.width == (None if array.ndim == 1 else array.shape[1])
        kinds = {np.uint8: Kind.INT8, np.float16: Kind.FLOAT16, np.float32: Kind.FLOAT32}
        assert tensor.kind is kinds[array.dtype.type]


def test_constants_and_subgraphs_are_found_too():
    array = np.arange(5000, dtype=np.float32)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array))
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, [5000])
    inner = helper.make_graph([constant], "inner", [], [output])
    condition = helper.make_tensor_value_info("b", TensorProto.BOOL, [])
    node = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5000])
    data = helper.make_model(helper.make_graph([node], "g", [condition], [result]))
    view = memoryview(data.SerializeToString())
    found = tensors_of({"model.onnx": view})["model.onnx"]
    assert [bytes(view[t.start : t.start + t.size]) for t in found] == [array.tobytes()] * 2


def test_four_bit_weights_are_known_by_the_node_that_takes_them():
    packed = np.zeros((64, 4, 16), np.uint8)
    scales = np.ones((64, 4), np.float32)
    nodes = [
        ("MatMulNBits", "x p s", "y", {"K": 128, "N": 64, "bits": 4, "block_size": 32}),
        ("MatMulNBits", "x q s", "z", {"K": 128, "N": 64, "bits": 8, "block_size": 32}),
    ]
    nodes = [
        helper.make_node(op, i.split(), o.split(), domain="com.microsoft", **attributes)
        for op, i, o, attributes in nodes
    ]
    tensors = [("p", packed), ("q", packed), ("s", scales)]
    graph = helper.make_graph(
        nodes, "g", [], [], [numpy_helper.from_array(array, name) for name, array in tensors]
    )
    view = memoryview(helper.make_model(graph).SerializeToString())
    found = tensors_of({"model.onnx": view})["model.onnx"]
    assert [(tensor.kind, tensor.width) for tensor in found] == [
        (Kind.INT4, 128),
        (Kind.INT8, 64),
        (Kind.FLOAT32, 4),
    ]


def test_an_onnx_tensor_of_four_bits_needs_no_node():
    tensor = helper.make_tensor("t", TensorProto.INT4, [10, 8], bytes(40), raw=True)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (found,) = tensors_of({"a.onnx": memoryview(model.SerializeToString())})["a.onnx"]
    assert (found.kind, found.size, found.width) == (Kind.INT4, 40, 8)


def test_external_data_without_a_length_is_as_long_as_its_shape_says():
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[30, 1000])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="t.data")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    files = {"a.onnx": model.SerializeToString(), "t.data": bytes(120_004)}
    found = tensors_of({name: memoryview(data) for name, data in files.items()})
    assert found["t.data"] == [Tensor(start=0, size=120_000, kind=Kind.FLOAT32, width=1000)]


@pytest.mark.parametrize("offset", ["-4", "120000", "x"])
def test_places_outside_a_file_are_no_tensors(offset):
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[10])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "t.data"), ("offset", offset), ("length", "40")):
        tensor.external_data.add(key=key, value=value)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    files = {"a.onnx": model.SerializeToString(), "t.data": bytes(120_004)}
    found = tensors_of({name: memoryview(data) for name, data in files.items()})
    assert found["t.data"] == []


@given(data=st.binary(max_size=300))
def test_a_file_that_is_not_what_its_name_says_has_no_tensors(data):
    for name in ("a.onnx", "a.safetensors"):
        found = tensors_of({name: memoryview(data)})[name]
        _assert_tiles(cuts(len(data), found), len(data))


@given(place=st.integers(0, 15_000), byte=st.integers(0, 255))
def test_a_damaged_graph_is_still_covered(place, byte):
    data = bytearray((DECODER / "model.onnx").read_bytes())
    data[place % len(data)] = byte
    files = {"model.onnx": memoryview(data), "model.onnx.data": memoryview(bytes(395_264))}
    for name, tensors in tensors_of(files).items():
        _assert_tiles(cuts(len(files[name]), tensors), len(files[name]))


def test_safetensors_are_read_by_their_header():
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [3, 4, 5], "data_offsets": [0, 120]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [120, 136]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(136)
    begin = 8 + len(text)
    assert tensors_of({"x.safetensors": memoryview(data)})["x.safetensors"] == [
        Tensor(start=begin, size=120, kind=Kind.BFLOAT16, width=20),
        Tensor(start=begin + 120, size=16, kind=Kind.INT8, width=None),
    ]


def test_a_tensor_that_did_not_change_is_the_same_blocks(tmp_path):
    arrays = weights()
    for name, changed in (("old", arrays), ("new", tuned(arrays, "half", "bias"))):
        (tmp_path / name).mkdir()
        write_graph(tmp_path / name / "model.onnx", changed, external="model.onnx.data")
    old, new = (_blocks(tmp_path / name, "model.onnx.data") for name in ("old", "new"))
    assert len(old) == len(new)
    same = sum(len(a) for a, b in zip(old, new, strict=True) if a == b)
    assert same >= arrays["embedding"].nbytes + arrays["matrix"].nbytes


@pytest.mark.parametrize("external", [None, "model.onnx.data"])
def test_a_tensor_that_moved_is_the_same_blocks(tmp_path, external):
    arrays = weights()
    longer = {"extra": np.ones(777, np.float32), **arrays, "half": arrays["half"][:200]}
    for name, changed in (("old", arrays), ("new", longer)):
        (tmp_path / name).mkdir()
        write_graph(tmp_path / name / "model.onnx", changed, external=external)
    old, new = (set(_blocks(tmp_path / name, external or "model.onnx")) for name in ("old", "new"))
    same = sum(map(len, old & new))
    assert same >= arrays["embedding"].nbytes


def test_a_small_model_of_onnx_is_covered(tmp_path):
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    data = memoryview(path.read_bytes())
    found = tensors_of({"mlp.onnx": data})["mlp.onnx"]
    stored = onnx.load(path).graph.initializer
    assert [bytes(data[t.start : t.start + t.size]) for t in found] == [t.raw_data for t in stored]
