"""Adapters beside each other in one batch, coming and going; and what is not let in."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from outpost_runtime import golden
from outpost_runtime.bundle import describe_file, read_bundle, write_manifest
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    InvalidInputError,
    StoreError,
    UnsupportedError,
)
from outpost_runtime.opening import open_model
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.store import Store
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank

from tests.support.batches import Batch
from tests.support.fixtures import ADAPTERS, DECODER, EMBEDDER

BASE = read_bundle(DECODER)
ONE, TWO = (read_bundle(folder) for folder in ADAPTERS)
PROMPTS = np.random.default_rng(7).integers(4, 260, (4, 10))


def _bank(capacity=2):
    return AdapterBank(BASE.manifest.interface.adapters, base=BASE.digest, capacity=capacity)


def _session(bank):
    return AdapterSession(OrtSession(DECODER / "model-adapters.onnx"), bank)


def _state(bank):
    arrays = bank.arrays(range(bank.capacity))
    return bank.loaded, {name: array.tobytes() for name, array in arrays.items()}


def _changed(tmp_path, change, bundle=TWO, **of_interface):
    """A copy of an adapter's bundle with other weights or another manifest."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "changed"))
    path = folder / "adapter.safetensors"
    weights = safetensors.numpy.load_file(path)
    change(weights)
    safetensors.numpy.save_file(weights, path)
    manifest = bundle.manifest
    manifest = dataclasses.replace(
        manifest,
        files=manifest.files | {"adapter.safetensors": describe_file(path)},
        interface=dataclasses.replace(manifest.interface, **of_interface),
    )
    return write_manifest(folder, manifest)


def test_each_row_of_a_batch_has_its_own_adapter():
    bank = _bank()
    chosen = [bank.load(ONE), None, bank.load(TWO), 0]
    tokens, logits = Batch(_session(bank), 4, chosen).answer(PROMPTS)
    for row, index in enumerate(chosen):
        prompt = PROMPTS[row : row + 1]
        alone_tokens, alone = Batch(_session(bank), 1, [index]).answer(prompt)
        assert tokens[row].tolist() == alone_tokens[0].tolist()
        assert np.abs(logits[row] - alone[0]).max() < 1e-4 * np.abs(alone).max()
    assert len({tuple(row) for row in tokens}) == 4


def test_a_batch_without_adapters_gets_the_very_bits_of_the_plain_graph():
    _, plain = Batch(OrtSession(DECODER / "model.onnx"), 4).answer(PROMPTS)
    empty = Batch(_session(_bank()), 4).answer(PROMPTS)[1]
    assert np.array_equal(empty, plain)
    bank = _bank()
    chosen = [None, bank.load(ONE), None, bank.load(TWO)]
    mixed = Batch(_session(bank), 4, chosen).answer(PROMPTS)[1]
    assert np.array_equal(mixed[[0, 2]], plain[[0, 2]])


def test_rows_keep_their_answer_while_other_adapters_come_and_go():
    bank = _bank(3)
    first = bank.load(ONE)
    wanted, _ = Batch(_session(bank), 1, [first]).answer(PROMPTS[:1])
    batch = Batch(_session(bank), 1, [first])
    step, tokens = batch.read(PROMPTS[:1]), []
    for number in range(24):
        tokens.append(int(step.argmax()))
        if number == 5:
            second = bank.load(TWO)
        if number == 15:
            bank.unload(second)
        step = batch.read([[tokens[-1]]])
    assert tokens == wanted[0].tolist()


def test_a_row_may_choose_again_and_gets_what_a_new_batch_would():
    bank = _bank()
    indices = [bank.load(ONE), bank.load(TWO)]
    wanted = [Batch(_session(bank), 1, [i]).read(PROMPTS[:1]) for i in (*indices, None)]
    batch = Batch(_session(bank), 1)
    for index, logits in zip((*indices, None), wanted, strict=True):
        batch.binding.choose([index])
        batch.past = 0
        assert np.array_equal(batch.read(PROMPTS[:1]), logits)


def test_an_unloaded_adapter_leaves_nothing_at_its_index():
    bank = _bank(1)
    bank.unload(bank.load(ONE))  # of every layer
    again = bank.load(TWO)  # of some layers
    fresh = _bank(1)
    fresh.load(TWO)
    assert (again, _state(bank)) == (0, _state(fresh))


def test_an_adapter_of_a_lower_rank_is_filled_up_with_zeros():
    bank = _bank(1)
    bank.load(ONE)
    stack = bank.arrays(range(1))["layers.0.mlp.up_proj.lora_A"]
    assert stack.shape == (8, 64)
    assert stack[:4].all()
    assert not stack[4:].any()


def test_a_run_binds_no_more_than_the_span_of_its_rows():
    bank = _bank(5)
    for _ in range(5):
        bank.load(TWO)
    assert bank.span([None, None]) == range(1)
    assert bank.span([3, None, 3]) == range(3, 4)
    assert bank.span([3, 1]) == range(1, 4)
    assert bank.rows([3, None, 1], range(1, 4)).tolist() == [2, -1, 0]


def test_a_full_bank_is_busy_and_says_what_helps():
    bank = _bank(1)
    bank.load(ONE)
    with pytest.raises(BusyError, match="All 1 places for adapters are taken") as caught:
        bank.load(TWO)
    assert "Unload another" in caught.value.hint
    bank.unload(0)
    assert bank.load(TWO) == 0


def test_the_wrong_use_of_an_index_is_our_own_fault():
    bank = _bank()
    with pytest.raises(AssertionError, match="not loaded"):
        bank.unload(0)
    with pytest.raises(AssertionError, match="not loaded"):
        bank.span([0])
    with pytest.raises(AssertionError, match="2 adapters for 1 rows"):
        Batch(_session(bank), 1, [None, None])


def test_a_bank_without_room_is_refused():
    with pytest.raises(InvalidInputError, match="at least one"):
        _bank(0)


def test_a_model_is_no_adapter():
    with pytest.raises(InvalidInputError, match="'tiny-embedder' is no adapter"):
        _bank().load(read_bundle(EMBEDDER))


def test_an_adapter_of_another_base_is_refused_with_both_digests(tmp_path):
    foreign = _changed(tmp_path, lambda _: None, base="0" * 64)
    with pytest.raises(
        BundleError, match=f"'tiny-decoder' .000000000000, here is {BASE.digest[:12]}"
    ):
        _bank().load(foreign)


NAME = "layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.clear(), "has no weights"),
        (lambda w: w.update({"lm_head.lora_A": w[NAME]}), "'lm_head.lora_A' is no layer"),
        (lambda w: w.update({NAME: w[NAME][:, :-1].copy()}), r"\[8, 63\]; the base takes"),
        (lambda w: w.update({NAME: w[NAME][0]}), r"is float32 \[64\]"),
        (lambda w: w.update({NAME: w[NAME].astype(np.float64)}), "is float64"),
        (lambda w: w.update({NAME: np.ones((9, 64), np.float32)}), "at most 8, 64"),
        (lambda w: w.update({NAME: np.ones((0, 64), np.float32)}), r"is float32 \[0, 64\]"),
        (lambda w: w.update({NAME: w[NAME] * np.float32(np.nan)}), "not finite"),
        (lambda w: w.update({NAME: w[NAME] * np.float32(np.inf)}), "not finite"),
        (lambda w: w.pop(NAME), "has no 'layers.0.self_attn.q_proj.lora_A' of the same rank"),
        (lambda w: w.update({NAME: w[NAME][:4].copy()}), "of the same rank"),
        (lambda w: w.update({NAME: np.ones((9999, 64), np.float32)}), "more than its base takes"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, change, complaint):
    bank = _bank()
    bank.load(ONE)
    before = _state(bank)
    with pytest.raises(BundleError, match=complaint):
        bank.load(_changed(tmp_path, change))
    assert _state(bank) == before


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_a_cut_file_is_refused(tmp_path, size):
    folder = Path(shutil.copytree(ONE.folder, tmp_path / "cut"))
    os.truncate(folder / "adapter.safetensors", size)
    with pytest.raises(BundleError, match="is not the file that the manifest lists"):
        _bank().load(read_bundle(folder))


def test_a_flipped_bit_is_found(tmp_path):
    folder = Path(shutil.copytree(ONE.folder, tmp_path / "flipped"))
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-9] ^= 1
    (folder / "adapter.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="is not the file that the manifest lists"):
        _bank().load(read_bundle(folder))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    folder = Path(shutil.copytree(ONE.folder, tmp_path / "other"))
    path = folder / "adapter.safetensors"
    path.write_bytes(b"PK\x03\x04 something else entirely")
    files = ONE.manifest.files | {path.name: describe_file(path)}
    bundle = write_manifest(folder, dataclasses.replace(ONE.manifest, files=files))
    with pytest.raises(BundleError, match="is no safetensors file"):
        _bank().load(bundle)


def test_the_plain_graph_cannot_take_adapters():
    with pytest.raises(BundleError, match="lacks the input adapter_rows"):
        AdapterSession(OrtSession(DECODER / "model.onnx"), _bank())


def test_the_memory_of_a_bank_is_what_it_says():
    bank = _bank(3)
    assert sum(array.nbytes for array in bank.arrays(range(3)).values()) == (
        3 * bank.bytes_per_adapter
    )


def test_golden_inputs_of_an_adapter_pass_and_tell_one_adapter_from_another(tmp_path):
    assert golden.check_adapter(ONE, BASE)["agreement"] == 1
    weights = safetensors.numpy.load_file(ONE.path("adapter.safetensors"))

    def exchange(of_two):
        of_two.clear()
        of_two.update(weights)

    with pytest.raises(BundleError, match="give other answers"):
        golden.check_adapter(_changed(tmp_path, exchange), BASE)


def test_golden_inputs_need_a_base_that_takes_adapters():
    with pytest.raises(BundleError, match="takes no adapters"):
        golden.check_adapter(ONE, read_bundle(EMBEDDER))


def test_an_adapter_cannot_be_opened_alone():
    with pytest.raises(UnsupportedError, match="is an adapter of 'tiny-decoder'"):
        open_model(ONE)


def test_a_store_takes_an_adapter_after_its_base_only(tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(StoreError, match="needs its base 'tiny-decoder'") as caught:
        store.add(ONE.folder)
    assert "Add the base's bundle first" in caught.value.hint
    assert store.names() == []
    store.add(DECODER)
    for adapter in (ONE, TWO):
        store.add(adapter.folder)
    assert store.names() == ["tiny-adapter-one", "tiny-adapter-two", "tiny-decoder"]


def test_a_store_refuses_an_adapter_of_a_base_that_is_not_active_any_more(tmp_path):
    store = Store(tmp_path / "store")
    store.add(DECODER)
    newer = Path(shutil.copytree(DECODER, tmp_path / "newer"))
    write_manifest(newer, dataclasses.replace(BASE.manifest, version="2"))
    store.add(newer)
    with pytest.raises(StoreError, match="is not active in the store"):
        store.add(ONE.folder)


def test_a_store_does_not_let_an_adapter_take_the_place_of_its_base(tmp_path):
    store = Store(tmp_path / "store")
    store.add(DECODER)
    folder = Path(shutil.copytree(ONE.folder, tmp_path / "renamed"))
    write_manifest(folder, dataclasses.replace(ONE.manifest, name="tiny-decoder"))
    with pytest.raises(StoreError, match="under a name of its own"):
        store.add(folder)
    assert store.slot("tiny-decoder").active == BASE.digest
