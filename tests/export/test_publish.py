"""Publishing: what is written, what an update moves, and what a power cut leaves behind."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from outpost_export.errors import PublishError
from outpost_export.progress import SilentReporter
from outpost_export.publishing import encoding
from outpost_export.publishing.publication import Order, Warehouse
from outpost_export.publishing.publish import changing, publish
from outpost_runtime.bundle import read_bundle
from outpost_runtime.errors import BundleError, BusyError, TrustError
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.coding import decode
from outpost_runtime.update.delta_index import delta_path, parse_delta_index
from outpost_runtime.update.encryption import unseal
from outpost_runtime.update.making import make_block
from outpost_runtime.update.offer import Rollout
from outpost_runtime.update.release import encode_release

from tests.support.fixtures import ADAPTERS, DECODER
from tests.support.power_switch import power_cut
from tests.support.releases import (
    contents,
    files_of,
    missing,
    tuned,
    update,
    weights,
    write_bundle,
)
from tests.support.shelves import ToyShelf

KEY = bytes(range(32))


class Publisher:
    """A repository and what is done to it."""

    def __init__(self, folder, key=KEY):
        self.folder = folder
        self.shelf = ToyShelf(folder)
        self.key = key

    @property
    def blocks(self):
        return BlockStore(self.folder / "blocks")

    def publish(self, bundle, **changes):
        warehouse = Warehouse(
            folder=self.folder, blocks=self.blocks, shelf=self.shelf, content_key=self.key
        )
        order = Order(bundle=bundle.folder, family="toys", **changes)
        return publish(order, warehouse, SilentReporter())

    def release(self, number):
        (offer,) = (offer for offer in self.shelf.offers() if offer.release == number)
        return self.shelf.release(offer)

    def tree(self):
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }


@pytest.fixture
def publisher(tmp_path):
    return Publisher(tmp_path / "repository")


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Three versions: the second changed some tensors, the third others."""
    folder, first = tmp_path_factory.mktemp("bundles"), weights()
    second = tuned(first, "matrix", "half", "scales")
    third = tuned(second, "matrix", seed=3)
    return [
        write_bundle(folder / str(n), arrays, version=str(n), text='{"merges": []}' * 200)
        for n, arrays in enumerate((first, second, third), 1)
    ]


def test_a_box_with_the_key_has_the_files_of_what_was_published(publisher, versions, tmp_path):
    publication = publisher.publish(versions[0])
    release = publisher.release(1)
    device = BlockStore(tmp_path / "device")
    assert update(publisher.folder, release, device, "", KEY) == publication.stored
    assert files_of(release, device, KEY) == contents(versions[0])
    assert (release.bundle, release.name, release.version) == (versions[0].digest, "toy", "1")
    assert publication.new_bytes == publication.stored
    assert publication.offer.release == 1


def test_deltas_lead_from_one_version_to_the_next_exactly(publisher, versions, tmp_path):
    publisher.publish(versions[0])
    publication = publisher.publish(versions[1])
    first, second = publisher.release(1), publisher.release(2)
    device = BlockStore(tmp_path / "device")
    update(publisher.folder, first, device, "", KEY)
    moved = update(publisher.folder, second, device, first.bundle, KEY)
    assert files_of(second, device, KEY) == contents(versions[1])
    (way,) = publication.ways
    assert way.moved == moved
    assert way.deltas > 0
    assert moved < 0.4 * way.full
    assert way.full < 0.4 * publication.stored


def test_every_delta_is_smaller_than_its_block(publisher, versions):
    for version in versions:
        publisher.publish(version)
    release = publisher.release(3)
    stored = {block.id: block.stored for block in release.blocks()}
    assert [r.bundle for r in release.deltas] == [versions[1].digest, versions[0].digest]
    for reference in release.deltas:
        index = parse_delta_index((publisher.folder / delta_path(reference.index)).read_bytes())
        assert index.deltas
        assert all(delta.stored < stored[delta.block] for delta in index.deltas)
    assert missing(publisher.folder, release) == []


def test_a_delta_from_the_wrong_block_makes_nothing(publisher, versions):
    publisher.publish(versions[0])
    publisher.publish(versions[1])
    release = publisher.release(2)
    index = (publisher.folder / delta_path(release.deltas[0].index)).read_bytes()
    delta, other = parse_delta_index(index).deltas[:2]
    block = next(block for block in release.blocks() if block.id == delta.block)
    stored = publisher.blocks.read(delta.id)
    for source in (other.source, delta.block, delta.id):
        with pytest.raises(TrustError):
            make_block(stored, publisher.blocks.read(source), block, KEY)
    with pytest.raises(TrustError):
        make_block(stored, publisher.blocks.read(delta.source), block, bytes(32))
    assert make_block(
        stored, publisher.blocks.read(delta.source), block, KEY
    ) == publisher.blocks.read(block.id)


def test_publishing_the_same_bundle_again_moves_no_bytes(publisher, versions):
    publisher.publish(versions[0])
    publisher.publish(versions[1])
    before = publisher.tree()
    again = publisher.publish(versions[1])
    assert publisher.tree() == before
    assert (again.new_blocks, again.new_deltas, again.new_bytes) == (0, 0, 0)
    assert not again.is_new
    assert again.offer.release == 2


def test_the_same_bundle_for_others_is_a_new_offer_and_no_bytes(publisher, versions):
    publisher.publish(versions[0], rollout=Rollout(percent=10), devices=("press",))
    wider = publisher.publish(versions[0], rollout=Rollout(percent=50), devices=("press",))
    assert (wider.offer.release, wider.offer.rollout.percent, wider.new_bytes) == (2, 50, 0)
    assert wider.offer.devices == ("press",)


def test_going_back_is_publishing_the_old_bundle_and_leads_from_the_new_one(
    publisher, versions, tmp_path
):
    publisher.publish(versions[0])
    publisher.publish(versions[1])
    back = publisher.publish(versions[0])
    assert (back.offer.release, back.new_blocks) == (3, 0)
    assert back.new_deltas > 0
    device = BlockStore(tmp_path / "device")
    update(publisher.folder, publisher.release(2), device, "", KEY)
    fresh = BlockStore(tmp_path / "fresh")
    for block in publisher.release(2).blocks():
        fresh.put(block.id, device.read(block.id))
    update(publisher.folder, publisher.release(3), fresh, versions[1].digest, KEY)
    assert files_of(publisher.release(3), fresh, KEY) == contents(versions[0])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_deltas_lead_from_as_many_predecessors_as_wanted(publisher, versions, count):
    for version in versions[:2]:
        publisher.publish(version)
    publication = publisher.publish(versions[2], predecessors=count)
    assert [way.offer.release for way in publication.ways] == [2, 1][:count]
    assert len(publisher.release(3).deltas) == count


def test_a_new_content_key_makes_new_blocks_and_no_deltas(publisher, versions):
    publisher.publish(versions[0])
    publisher.key = bytes(32)
    publication = publisher.publish(versions[1])
    assert publication.ways == ()
    assert publication.new_blocks == publication.blocks
    again = publisher.publish(versions[1])
    assert not again.is_new


def test_another_target_of_the_name_is_no_predecessor(publisher, versions):
    publisher.publish(versions[0])
    offer = publisher.shelf.offers()[0]
    assert offer.target == versions[0].manifest.target
    release = publisher.release(1)
    publisher.shelf.withdraw(offer)
    other = replace(offer, target="cpu-int8")
    publisher.shelf.add("toys", other, encode_release(replace(release, target="cpu-int8")))
    assert publisher.publish(versions[1]).ways == ()


def test_files_without_tensors_are_compressed_and_weights_are_not(publisher, versions):
    publisher.publish(versions[0])
    release = publisher.release(1)
    codings = {
        file.name: {unseal(publisher.blocks.read(b.id), KEY)[0] for b in file.blocks}
        for file in release.files
    }
    assert codings["tokenizer.json"] == {1}
    assert codings["manifest.json"] == {1}
    assert codings["model.onnx.data"] == {0}
    assert codings["golden.safetensors"] == {0}


def test_a_text_that_did_not_change_is_the_same_block_whatever_zstd_does(
    publisher, versions, monkeypatch
):
    publisher.publish(versions[0])
    first = next(f for f in publisher.release(1).files if f.name == "tokenizer.json")
    # Another version of zstd may compress the same text to other bytes.
    monkeypatch.setattr(encoding, "encode_zstd", lambda data: bytes([0]) + data)
    publisher.publish(versions[1])
    second = next(f for f in publisher.release(2).files if f.name == "tokenizer.json")
    assert first == second


def test_a_dry_run_says_the_same_and_writes_nothing(publisher, versions):
    publisher.publish(versions[0])
    before = publisher.tree()
    dry = publisher.publish(versions[1], dry_run=True)
    assert publisher.tree() == before
    wet = publisher.publish(versions[1])
    assert dry.offer.release == 0
    assert (dry.ways, dry.new_blocks, dry.new_deltas, dry.new_bytes) == (
        wet.ways,
        wet.new_blocks,
        wet.new_deltas,
        wet.new_bytes,
    )


def test_a_dry_run_of_a_new_repository_does_not_make_it(publisher, versions):
    publisher.publish(versions[0], dry_run=True)
    assert not publisher.folder.exists()


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")]
)
def test_a_block_that_is_missing_or_damaged_is_written_again(publisher, versions, damage):
    publisher.publish(versions[0])
    release = publisher.release(1)
    (data,) = (file for file in release.files if file.name == "model.onnx.data")
    (text,) = (file for file in release.files if file.name == "tokenizer.json")
    for block in (data.blocks[0], text.blocks[0]):
        damage(publisher.folder / "blocks" / block.id[:2] / block.id)
    again = publisher.publish(versions[0])
    assert (again.new_blocks, again.is_new) == (2, False)
    assert missing(publisher.folder, release) == []


def test_a_damaged_bundle_is_not_published(publisher, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", weights())
    path = bundle.path("model.onnx.data")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError):
        publisher.publish(bundle)
    assert not publisher.folder.exists()


def test_an_adapter_needs_its_base_in_the_repository(publisher):
    adapter, base = read_bundle(ADAPTERS[0]), read_bundle(DECODER)
    with pytest.raises(PublishError, match="does not offer"):
        publisher.publish(adapter)
    publisher.publish(base)
    publisher.publish(adapter)
    (offer,) = (o for o in publisher.shelf.offers() if o.bundle == adapter.digest)
    release = publisher.shelf.release(offer)
    assert release.base is not None
    assert (release.base.bundle, release.base.name) == (base.digest, base.manifest.name)
    assert files_of(release, publisher.blocks, KEY) == contents(adapter)


def test_an_empty_file_is_published_too(publisher, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", weights(), text="")
    publisher.publish(bundle)
    assert files_of(publisher.release(1), publisher.blocks, KEY)["tokenizer.json"] == b""


def test_a_file_that_grew_in_front_parts_no_other_tensor_from_its_delta(publisher, tmp_path):
    first = weights()
    longer = {"names": np.ones(40_000, np.float32), **tuned(first, "matrix")}
    publisher.publish(write_bundle(tmp_path / "1", first))
    publication = publisher.publish(write_bundle(tmp_path / "2", longer, version="2"))
    assert publication.ways[0].deltas >= 1


def test_two_commands_do_not_change_a_repository_at_once(publisher, versions):
    with changing(publisher.folder), pytest.raises(BusyError):
        publisher.publish(versions[0])
    publisher.publish(versions[0])


def test_what_is_published_is_encrypted(publisher, versions):
    publisher.publish(versions[0])
    publisher.publish(versions[1])
    plain = weights()["matrix"].tobytes()[:64]
    blocks = {name: data for name, data in publisher.tree().items() if name.startswith("blocks/")}
    assert blocks
    assert not any(plain in data or b"merges" in data for data in blocks.values())
    with pytest.raises(TrustError):
        unseal(next(iter(blocks.values())), bytes(32))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.incident("power cut", where="any change of the disk while publishing")
def test_a_power_cut_at_any_write_leaves_a_valid_repository_and_the_next_run_goes_on(
    version, tmp_path
):
    first = {name: array for name, array in weights().items() if name in ("matrix", "scales")}
    bundles = [
        write_bundle(tmp_path / "first", first),
        write_bundle(tmp_path / "second", tuned(first, "matrix"), version="2"),
    ]
    for after in itertools.count():
        publisher = Publisher(tmp_path / str(after))
        publisher.folder.mkdir()
        for earlier in bundles[:version]:
            publisher.publish(earlier)
        with power_cut(publisher.folder, after=after) as cut:
            publisher.publish(bundles[version])
        for offer in publisher.shelf.offers():
            assert missing(publisher.folder, publisher.shelf.release(offer)) == []
        if not cut:
            break
        publisher.publish(bundles[version])
        release = publisher.release(version + 1)
        assert missing(publisher.folder, release) == []
        assert files_of(release, publisher.blocks, KEY) == contents(bundles[version])
    assert after > 10


@pytest.mark.slow
def test_memory_holds_a_few_blocks_of_a_large_bundle(publisher, tmp_path):
    random = np.random.default_rng(4)
    arrays = {"large": random.integers(0, 256, (48, 1 << 20)).astype(np.uint8)}
    bundle = write_bundle(tmp_path / "bundle", arrays)
    del arrays
    tracemalloc.start()
    publisher.publish(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    block = publisher.release(1).files[2].blocks[0]
    assert len(decode(unseal(publisher.blocks.read(block.id), KEY), block.size)) == block.size
