"""One base, many adapters: each row of a batch answers as its merged checkpoint would."""

import json
import shutil

import numpy as np
import onnx
import pytest
import transformers
from outpost_export import decoder_build
from outpost_export.cli import main as export
from outpost_export.errors import ConversionError, EvidenceError, RecipeError, SourceError
from outpost_runtime.bundle import read_bundle, verify
from outpost_runtime.cli.main import main as outpost
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank

from tests.support import checkpoints
from tests.support.batches import Batch
from tests.support.building import build_adapter_bundle, build_bundle
from tests.support.fixtures import ADAPTERS, DECODER

# Stronger than a fine-tune would be, and weak enough that the answers stay varied.
_SETTINGS = (
    {"seed": 5, "lora_alpha": 2},
    {
        "seed": 6,
        "r": 8,
        "lora_alpha": 1,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj"],
    },
)

pytestmark = pytest.mark.slow  # every build is measured against transformers


@pytest.fixture(scope="module")
def base(llama, tmp_path_factory):
    return build_bundle(llama, tmp_path_factory.mktemp("base") / "base", adapter_rank=8)


@pytest.fixture(scope="module")
def adapters(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [
        checkpoints.save_adapter(llama, folder / str(number), **settings)
        for number, settings in enumerate(_SETTINGS)
    ]


@pytest.fixture(scope="module")
def built(llama, base, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return [
        build_adapter_bundle(adapter, base, llama, folder / f"adapter-{number}")
        for number, adapter in enumerate(adapters)
    ]


@pytest.fixture(scope="module")
def merged(llama, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    return [
        build_bundle(llama, folder / f"merged-{number}", adapter=adapter)
        for number, adapter in enumerate(adapters)
    ]


@pytest.fixture
def bank(base):
    return AdapterBank(base.manifest.interface.adapters, base=base.digest, capacity=3)


@pytest.fixture
def session(base, bank):
    return AdapterSession(OrtSession(base.path("model-adapters.onnx")), bank)


def _prompts(rows, length=12):
    return np.random.default_rng(1).integers(4, checkpoints.VOCABULARY, (rows, length))


def _plain(bundle):
    return OrtSession(bundle.path("model.onnx"))


def _close(got, wanted):
    return np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_rows_with_different_adapters_answer_as_their_merged_checkpoints(
    base, bank, session, built, merged
):
    chosen = [bank.load(built[0]), None, bank.load(built[1]), 0]
    prompts = _prompts(4)
    tokens, logits = Batch(session, 4, chosen).answer(prompts)
    of_models = [merged[0], base, merged[1], merged[0]]
    for row, bundle in enumerate(of_models):
        wanted_tokens, wanted_logits = Batch(_plain(bundle), 1).answer(prompts[row : row + 1])
        assert tokens[row].tolist() == wanted_tokens[0].tolist()
        assert _close(logits[row], wanted_logits[0])
    assert len({tuple(row) for row in tokens}) == 4


def test_rows_without_an_adapter_get_the_very_bits_of_the_plain_graph(base, bank, session, built):
    chosen = [None, bank.load(built[0]), None]
    prompts = _prompts(3)
    _, logits = Batch(session, 3, chosen).answer(prompts)
    _, plain = Batch(_plain(base), 3).answer(prompts)
    assert np.array_equal(logits[[0, 2], 0], plain[[0, 2], 0])
    assert np.array_equal(logits[0], plain[0])
    assert not np.array_equal(logits[1], plain[1])


def test_a_prompt_read_in_chunks_gives_the_same_answer(bank, session, built, merged):
    index = bank.load(built[1])
    prompt = _prompts(1, 40)
    chunked = Batch(session, 1, [index])
    for start in range(0, 35, 7):
        chunked.read(prompt[:, start : start + 7])
    tokens, logits = chunked.answer(prompt[:, 35:])
    wanted_tokens, wanted_logits = Batch(_plain(merged[1]), 1).answer(prompt)
    assert tokens.tolist() == wanted_tokens.tolist()
    assert _close(logits, wanted_logits)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gemma3", checkpoints.ALL_LINEARS),
        ("qwen3", ["k_proj", "v_proj", "gate_proj"]),
        ("qwen2", checkpoints.ALL_LINEARS),
        ("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ],
)
def test_every_architecture_takes_adapters(kind, targets, tmp_path):
    changes = {"original_max_position_embeddings": 256} if kind == "phi3" else {}
    source = checkpoints.save_decoder(tmp_path / "source", kind, **changes)
    adapter = checkpoints.save_adapter(source, tmp_path / "adapter", target_modules=targets)
    base = build_bundle(source, tmp_path / "base", adapter_rank=4)
    figures = build_adapter_bundle(adapter, base, source, tmp_path / "b").manifest.evidence.figures
    assert figures["perplexity_difference"] < 1e-4
    assert figures["greedy_tokens"] == 32
    assert figures["evaluated_tokens"] == 256


def test_on_an_int8_base_an_adapter_is_close_to_the_merged_checkpoint(llama, adapters, tmp_path):
    loose = {"thresholds": {"perplexity_increase": 9.0}}
    base = build_bundle(llama, tmp_path / "base", "cpu-int8", adapter_rank=4, **loose)
    bundle = build_adapter_bundle(adapters[0], base, llama, tmp_path / "b", **loose)
    assert bundle.manifest.target == "cpu-int8"
    assert bundle.manifest.evidence.figures["top1_agreement"] > 0.85


def test_the_weights_of_a_base_lie_on_the_disk_once(base, llama, tmp_path):
    plain = build_bundle(llama, tmp_path / "plain")
    more = set(base.manifest.files) - set(plain.manifest.files)
    assert more == {"model-adapters.onnx"}
    assert base.manifest.files["model.onnx.data"] == plain.manifest.files["model.onnx.data"]
    assert base.manifest.files["model.onnx"] == plain.manifest.files["model.onnx"]


def test_an_adapters_bundle_says_what_it_is(base, built):
    for bundle, rank in zip(built, (4, 8), strict=True):
        verify(bundle)
        manifest = bundle.manifest
        interface = manifest.interface
        assert isinstance(interface, AdapterInterface)
        assert (interface.base, interface.base_name) == (base.digest, "base")
        assert interface.rank == rank
        assert (interface.chat_template, interface.end_tokens, interface.defaults) == (None,) * 3
        assert (manifest.task, manifest.target) == ("text-generation", "cpu-fp32")
        assert set(manifest.files) == {"adapter.safetensors", "golden.safetensors"}
        assert manifest.provenance.source == base.manifest.provenance.source
        assert "adapter_model.safetensors" in manifest.provenance.adapter
        assert bundle.size < 0.2 * base.size


def test_what_an_adapter_brings_of_its_own_is_in_its_bundle(llama, base, adapters, tmp_path):
    adapter = shutil.copytree(adapters[0], tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    generation = {"eos_token_id": [2, 7], "do_sample": True, "temperature": 0.5, "top_k": 20}
    (adapter / "generation_config.json").write_text(json.dumps(generation))
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    bundle = build_adapter_bundle(adapter, base, llama, tmp_path / "b")
    interface = bundle.manifest.interface
    assert bundle.path(interface.chat_template).read_text() == "{{ messages[0].content }}!"
    assert interface.end_tokens == (2, 7)
    assert (interface.defaults.temperature, interface.defaults.top_k) == (0.5, 20)
    assert bundle.manifest.licence == "mit"


def test_the_same_adapter_gives_the_same_digest(llama, base, adapters, built, tmp_path):
    again = build_adapter_bundle(adapters[0], base, llama, tmp_path / "adapter-0")
    assert again.digest == built[0].digest


def test_nothing_of_the_building_machine_is_in_the_bundles(base, built):
    for bundle in (base, *built):
        for name in (*bundle.manifest.files, "manifest.json"):
            assert str(base.folder.parent).encode() not in bundle.path(name).read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of what it saves with these
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"use_dora": True}, "use_dora = true"),
        ({"bias": "lora_only"}, 'bias = "lora_only"'),
        ({"lora_bias": True}, "lora_bias = true"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\]'),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_to_be_merged(
    llama, base, tmp_path, changes, complaint
):
    adapter = checkpoints.save_adapter(llama, tmp_path / "adapter", **changes)
    with pytest.raises(SourceError, match=complaint) as caught:
        build_adapter_bundle(adapter, base, llama, tmp_path / "out" / "b")
    assert "Merge it" in caught.value.hint
    assert not list(tmp_path.glob("out/*"))


def test_a_rank_that_the_base_does_not_take_says_how_to_build_the_base(llama, base, tmp_path):
    adapter = checkpoints.save_adapter(llama, tmp_path / "adapter", rank_pattern={"o_proj": 9})
    with pytest.raises(SourceError, match="is 9; the base was built for adapters of rank 8"):
        build_adapter_bundle(adapter, base, llama, tmp_path / "b")


def test_an_adapter_of_another_base_is_refused(llama, base, tmp_path):
    wide = checkpoints.save_decoder(tmp_path / "wide", hidden_size=128)
    adapter = checkpoints.save_adapter(wide, tmp_path / "adapter")
    with pytest.raises(ConversionError, match="Is it an adapter of this very base"):
        build_adapter_bundle(adapter, base, llama, tmp_path / "b")


def test_another_checkpoint_than_that_of_the_base_is_refused(base, adapters, tmp_path):
    other = checkpoints.save_decoder(tmp_path / "other", seed=1)
    with pytest.raises(SourceError, match="is not the checkpoint that 'base' was built from"):
        build_adapter_bundle(adapters[0], base, other, tmp_path / "b")


def test_a_base_that_takes_no_adapters_is_refused(llama, adapters, merged, tmp_path):
    with pytest.raises(SourceError, match="without a graph for adapters"):
        build_adapter_bundle(adapters[0], merged[0], llama, tmp_path / "b")


def test_a_base_with_a_merged_adapter_is_refused(llama, adapters, tmp_path):
    base = build_bundle(llama, tmp_path / "base", adapter=adapters[0], adapter_rank=4)
    with pytest.raises(SourceError, match="has an adapter merged into it"):
        build_adapter_bundle(adapters[1], base, llama, tmp_path / "b")


def test_an_adapter_with_another_tokenizer_is_refused(llama, base, adapters, tmp_path):
    adapter = shutil.copytree(adapters[0], tmp_path / "adapter")
    checkpoints.save_tokenizer(adapter, end_marker=True)
    with pytest.raises(SourceError, match="another tokenizer than its base's"):
        build_adapter_bundle(adapter, base, llama, tmp_path / "b")


def test_a_tokenizer_saved_beside_an_adapter_may_remember_its_training(
    llama, base, adapters, tmp_path
):
    adapter = shutil.copytree(adapters[0], tmp_path / "adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=16)
    tokenizer.save_pretrained(adapter)
    bundle = build_adapter_bundle(adapter, base, llama, tmp_path / "b")
    assert set(bundle.manifest.files) == {"adapter.safetensors", "golden.safetensors"}


def test_an_adapter_cannot_take_the_name_of_its_base(llama, base, adapters, tmp_path):
    with pytest.raises(RecipeError, match="cannot have the name of its base"):
        build_adapter_bundle(adapters[0], base, llama, tmp_path / "b", name="base")


def test_an_adapter_that_misses_its_threshold_leaves_nothing(llama, base, adapters, tmp_path):
    out = tmp_path / "bundles" / "bad"
    with pytest.raises(EvidenceError, match="top1_agreement is 1, demanded is at least 2"):
        build_adapter_bundle(adapters[0], base, llama, out, thresholds={"top1_agreement": 2.0})
    assert list(out.parent.iterdir()) == []


def test_a_graph_for_adapters_that_computes_something_else_is_not_built(
    llama, tmp_path, monkeypatch
):
    right = decoder_build.write_adapter_graph

    def wrong(folder, *, rank):
        support = right(folder, rank=rank)
        model = onnx.load(folder / support.model, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 1.0
        (folder / support.model).write_bytes(model.SerializeToString())
        return support

    monkeypatch.setattr(decoder_build, "write_adapter_graph", wrong)
    with pytest.raises(ConversionError, match="does not compute what the plain one does"):
        build_bundle(llama, tmp_path / "b", adapter_rank=4)
    assert not (tmp_path / "b").exists()


def test_an_encoder_takes_no_adapters(encoder, tmp_path):
    with pytest.raises(RecipeError, match="set no adapter_rank"):
        build_bundle(encoder, tmp_path / "b", adapter_rank=4)


def test_from_checkpoints_to_a_checked_store_by_commands(llama, adapters, tmp_path, capsys):
    base, adapter, store = (str(tmp_path / name) for name in ("base", "mine", "store"))
    built = ["build", str(llama), "--target", "cpu-fp32", "--adapter-rank", "8", "--out", base]
    assert export(built) == 0
    named = ["--base", base, "--source", str(llama), "--version", "2", "--out", adapter]
    assert export(["build-adapter", str(adapters[0]), *named]) == 0
    assert export(["inspect", adapter]) == 0
    assert "adapter of base" in capsys.readouterr().out
    assert outpost(["add", adapter, "--store", store]) == 1
    assert "Add the base's bundle first" in capsys.readouterr().err
    assert outpost(["add", base, "--store", store]) == 0
    assert outpost(["add", adapter, "--store", store]) == 0
    assert outpost(["check", "--store", store]) == 0
    assert capsys.readouterr().out.count("as built") == 2


def test_a_missing_base_is_one_clear_message(llama, adapters, tmp_path, capsys):
    named = ["--base", str(tmp_path / "no"), "--source", str(llama), "--out", str(tmp_path / "b")]
    assert export(["build-adapter", str(adapters[0]), *named]) == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_the_committed_adapters_are_still_of_the_committed_base():
    for folder in ADAPTERS:
        assert read_bundle(folder).manifest.interface.base == read_bundle(DECODER).digest
