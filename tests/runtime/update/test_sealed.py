"""A bundle that is opened from encrypted blocks is the bundle; a wrong one is not opened."""

import dataclasses
import gc
import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from outpost_runtime import golden, golden_file
from outpost_runtime.bundle import read_bundle, verify
from outpost_runtime.errors import BundleError, TrustError, UnavailableError
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
from outpost_runtime.text.chat import Message
from outpost_runtime.text.constraint import ConstraintKind
from outpost_runtime.update.release import Block, ReleasedFile
from outpost_runtime.update.sealed import open_sealed

from tests.support.batches import Batch
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER
from tests.support.sealed import KEY, Blocks, released, sealed

PROMPTS = np.random.default_rng(3).integers(4, 260, (3, 11))
ONE_THREAD = ModelSettings(threads=1)
WEIGHTS = "model.onnx.data"


@pytest.fixture
def shipped():
    """The classifier's release, and its blocks."""
    blocks = Blocks()
    return released(read_bundle(CLASSIFIER), blocks), blocks


def _golden_inputs(bundle, specs):
    tensors = golden_file.of_bundle(bundle)
    return {spec.name: tensors[f"0/inputs/{spec.name}"] for spec in specs}


def _file(release, name):
    return next(file for file in release.files if file.name == name)


def _with_file(release, changed):
    files = tuple(changed if file.name == changed.name else file for file in release.files)
    return dataclasses.replace(release, files=files)


def test_every_file_is_what_the_plain_bundle_has():
    for folder in (DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS):
        bundle = sealed(folder)
        assert bundle.digest == read_bundle(folder).digest
        for name in bundle.manifest.files:
            assert bundle.read(name) == (folder / name).read_bytes()
            assert bundle.contents.path(name) is None


@pytest.mark.parametrize(("start", "size"), [(0, 1), (95, 10), (100, 100), (0, None), (250, 99)])
def test_a_part_of_a_file_is_read_from_its_blocks_alone(start, size):
    data = (CLASSIFIER / WEIGHTS).read_bytes()
    pieces = sealed(CLASSIFIER, block_bytes=100).contents.pieces(WEIGHTS, start=start, size=size)
    stop = None if size is None else start + size
    assert b"".join(pieces) == data[start:stop]


@pytest.mark.parametrize("block_bytes", [1 << 20, 1000])
@pytest.mark.parametrize("folder", [EMBEDDER, CLASSIFIER], ids=lambda folder: folder.name)
def test_a_sealed_encoder_gives_the_very_bits_of_the_plain_one(folder, block_bytes):
    plain, bundle = open_model(read_bundle(folder)), sealed(folder, block_bytes=block_bytes)
    model = open_model(bundle, ONE_THREAD)
    feeds = _golden_inputs(bundle, model.engine.inputs)
    wanted = plain.engine.submit(feeds).result(20)
    got = model.engine.submit(feeds).result(20)
    assert {name: array.tobytes() for name, array in got.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
    assert golden.check(model) == golden.check(plain)
    plain.close()
    model.close()


def test_a_sealed_decoder_gives_the_very_bits_of_the_plain_one():
    plain, bundle = OrtSession(DECODER / "model.onnx"), sealed(DECODER)
    session = OrtSession(graph_of(bundle, "model.onnx"))
    assert session.inputs == plain.inputs
    assert session.outputs == plain.outputs
    assert np.array_equal(Batch(session, 3).answer(PROMPTS)[1], Batch(plain, 3).answer(PROMPTS)[1])


def test_a_sealed_text_model_has_its_template_its_tokenizer_and_its_forms():
    plain, model = open_model(read_bundle(DECODER)), open_model(sealed(DECODER))
    for prompt in ("Grüße", [Message(role="user", content="Grüße")]):
        assert model.prompt_ids(prompt) == plain.prompt_ids(prompt)
    masks = [m.constraint(ConstraintKind.REGEX, "[0-9]+") for m in (plain, model)]
    logits = np.zeros(plain.decoder.vocabulary_size, np.float32)
    assert np.array_equal(*(mask.apply(logits) for mask in masks))
    assert golden.check(model) == golden.check(plain)
    assert model.sampling == plain.sampling
    plain.close()
    model.close()


def test_sealed_adapters_of_a_sealed_base_give_the_very_bits_of_plain_ones():
    answers = []
    for base, adapters in (
        (read_bundle(DECODER), [read_bundle(folder) for folder in ADAPTERS]),
        (sealed(DECODER), [sealed(folder) for folder in ADAPTERS]),
    ):
        support = base.manifest.interface.adapters
        bank = AdapterBank(support, base=base.digest, capacity=2)
        chosen = [bank.load(adapters[0]), None, bank.load(adapters[1])]
        session = AdapterSession(OrtSession(graph_of(base, support.model)), bank)
        answers.append(Batch(session, 3, chosen).answer(PROMPTS)[1])
        session.close()
    assert np.array_equal(*answers)


def test_a_sealed_adapter_is_loaded_beside_its_base_and_checked_with_it():
    model = open_model(sealed(DECODER))
    adapter = sealed(ADAPTERS[0])
    model.load_adapter(adapter)
    assert model.adapters.names() == ["tiny-adapter-one"]
    assert golden.check_adapter(adapter, sealed(DECODER)) == golden.check_adapter(
        read_bundle(ADAPTERS[0]), read_bundle(DECODER)
    )
    model.close()


def test_a_sealed_model_apart_gives_the_very_bits_and_comes_back_when_its_process_dies():
    bundle = sealed(EMBEDDER)
    here = open_model(read_bundle(EMBEDDER), ONE_THREAD)
    model = open_model(bundle, ModelSettings(threads=1, apart=True))
    feeds = _golden_inputs(bundle, model.engine.inputs)
    wanted = here.engine.submit(feeds).result(20)["sentence_embedding"].tobytes()
    assert model.engine.submit(feeds).result(20)["sentence_embedding"].tobytes() == wanted
    os.kill(model.engine._session.process_id, signal.SIGKILL)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            got = model.engine.submit(feeds).result(20)["sentence_embedding"].tobytes()
        except UnavailableError:
            got = None
            time.sleep(0.05)
        else:
            break
    assert got == wanted
    here.close()
    model.close()


def test_a_closed_model_leaves_no_descriptor_and_no_mapping_behind():
    def left():
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, Path("/proc/self/maps").read_text().count("memfd:weights")

    before = left()
    for folder in (EMBEDDER, CLASSIFIER):
        open_model(sealed(folder)).close()
    open_model(sealed(CLASSIFIER), ModelSettings(threads=1, apart=True)).close()
    assert left() == before


def test_a_missing_block_is_named_by_model_and_file_and_nothing_is_opened(shipped):
    release, blocks = shipped
    del blocks[_file(release, WEIGHTS).blocks[3].id]
    bundle = open_sealed(release, blocks.read, KEY)
    told = r"model\.onnx\.data of 'tiny-classifier' .*is not in the store"
    for act in (verify, open_model):
        with pytest.raises(BundleError, match=told):
            act(bundle)
    with pytest.raises(BundleError, match=told):
        open_model(bundle, ModelSettings(threads=1, apart=True))


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", WEIGHTS, "tokenizer.json"])
def test_a_damaged_block_is_never_used_even_where_the_store_has_not_noticed(shipped, name):
    release, blocks = shipped
    block = _file(release, name).blocks[-1]
    stored = bytearray(blocks[block.id])
    stored[len(stored) // 2] ^= 1
    blocks[block.id] = bytes(stored)
    with pytest.raises(BundleError, match=rf"{name} of 'tiny-classifier'.*damaged"):
        verify(open_sealed(release, blocks.read, KEY))
    with pytest.raises(BundleError, match=rf"{name} of 'tiny-classifier'"):
        verify(open_sealed(release, blocks.__getitem__, KEY))


def test_blocks_that_were_exchanged_are_noticed(shipped):
    release, blocks = shipped
    first, second = _file(release, WEIGHTS).blocks[:2]
    swapped = blocks | {first.id: blocks[second.id], second.id: blocks[first.id]}
    bundle = open_sealed(release, swapped.__getitem__, KEY)  # a store that looks at no digest
    with pytest.raises(BundleError, match="is not the file that the manifest lists"):
        verify(bundle)


def test_another_key_opens_nothing(shipped):
    release, blocks = shipped
    with pytest.raises(TrustError, match=r"not the one that 'tiny-classifier'") as caught:
        open_sealed(release, blocks.read, bytes(32))
    assert bytes(32).hex() not in str(caught.value)


def test_blocks_of_another_key_open_nothing(shipped):
    release, _ = shipped
    others = Blocks()
    foreign = released(read_bundle(CLASSIFIER), others, key=bytes(32))
    mixed = dataclasses.replace(foreign, key=release.key)
    with pytest.raises(BundleError, match=r"manifest\.json of 'tiny-classifier'"):
        open_sealed(mixed, others.read, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": hashlib.sha256(b"another").hexdigest()},
        {"name": "another"},
        {"version": "9.9"},
        {"target": "cpu-int8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_release_that_is_not_of_its_manifest_is_refused(shipped, change):
    release, blocks = shipped
    with pytest.raises(TrustError, match=f"'{change.get('name', 'tiny-classifier')}'"):
        open_sealed(dataclasses.replace(release, **change), blocks.read, KEY)


def test_files_that_only_release_or_manifest_has_are_refused(shipped):
    release, blocks = shipped
    file = _file(release, "tokenizer.json")
    more = (*release.files, ReleasedFile(name="stranger", blocks=file.blocks))
    less = tuple(other for other in release.files if other is not file)
    shorter = _with_file(release, ReleasedFile(name=file.name, blocks=()))
    for wrong, name in (
        (dataclasses.replace(release, files=more), "stranger"),
        (dataclasses.replace(release, files=less), "tokenizer.json"),
        (shorter, "tokenizer.json"),
    ):
        with pytest.raises(TrustError, match=f"'tiny-classifier' .* do not say the same of {name}"):
            open_sealed(wrong, blocks.read, KEY)


def test_a_block_of_another_length_than_the_release_says_is_refused(shipped):
    release, blocks = shipped
    file = _file(release, WEIGHTS)
    first, second, *rest = file.blocks
    uneven = (
        Block(id=first.id, size=first.size - 1, stored=first.stored),
        Block(id=second.id, size=second.size + 1, stored=second.stored),
        *rest,
    )
    bundle = open_sealed(
        _with_file(release, ReleasedFile(name=WEIGHTS, blocks=uneven)), blocks.read, KEY
    )
    for act in (verify, open_model):
        with pytest.raises(BundleError, match=r"model\.onnx\.data of 'tiny-classifier'"):
            act(bundle)


def test_the_key_is_in_no_text(shipped):
    release, blocks = shipped
    bundle = open_sealed(release, blocks.read, KEY)
    assert repr(KEY) not in repr(bundle)
    assert KEY.hex() not in repr(bundle)
