"""Decoders, end to end on tiny models: checkpoint in, measured bundle out."""

import fcntl
import json
import os
import shutil

import pytest
import torch
from outpost_export import decoder_build
from outpost_export.errors import ConversionError, EvidenceError, RecipeError, SourceError
from outpost_runtime.bundle import read_bundle, verify
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import checkpoints
from tests.support.building import build_bundle
from tests.support.fixtures import DECODER


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_a_float32_build_says_what_the_checkpoint_says(kind, tmp_path):
    source = checkpoints.save_decoder(tmp_path / "source", kind)
    bundle = build_bundle(source, tmp_path / "bundle")
    figures = bundle.manifest.evidence.figures
    assert figures["perplexity_difference"] < 1e-4
    assert figures["top1_agreement"] == 1
    assert figures["greedy_tokens"] == 32
    assert figures["evaluated_tokens"] == 256  # ten times gemma3's sliding window
    verify(bundle)


def test_a_scaled_rope_of_gemma_3_is_applied_to_global_layers_only(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    source = checkpoints.save_decoder(tmp_path / "source", "gemma3", rope_parameters=rope)
    figures = build_bundle(source, tmp_path / "bundle").manifest.evidence.figures
    assert figures["perplexity_difference"] < 1e-4


# A random model has many near ties, which the coarser scales per column decide more often.
@pytest.mark.parametrize(("scales", "agreement"), [("columns", 0.85), ("blocks", 0.9)])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_int8_is_smaller_and_close(kind, scales, agreement, tmp_path):
    source = checkpoints.save_decoder(tmp_path / "source", kind)
    exact = build_bundle(source, tmp_path / "exact")
    loose = {"perplexity_increase": 9.0}
    small = build_bundle(source, tmp_path / "small", "cpu-int8", scales=scales, thresholds=loose)
    assert small.size < 0.6 * exact.size
    assert small.manifest.evidence.figures["top1_agreement"] > agreement


def test_the_same_input_and_recipe_give_the_same_digest(llama, tmp_path):
    digests = {
        build_bundle(
            llama, tmp_path / number / "model", "cpu-int8", thresholds={"perplexity_increase": 9.0}
        ).digest
        for number in "12"
    }
    assert len(digests) == 1


def test_a_build_that_misses_its_threshold_leaves_nothing_and_says_by_how_much(llama, tmp_path):
    out = tmp_path / "bundles" / "bad"
    with pytest.raises(
        EvidenceError, match=r"top1_agreement is .*, demanded is at least 2"
    ) as caught:
        build_bundle(llama, out, "cpu-int4", thresholds={"top1_agreement": 2.0})
    assert "Try --target cpu-int8" in caught.value.hint
    assert list(out.parent.iterdir()) == []


def test_who_misses_a_threshold_with_scales_per_column_is_told_of_blocks(llama, tmp_path):
    with pytest.raises(EvidenceError) as caught:
        build_bundle(llama, tmp_path / "b", "cpu-int8", thresholds={"top1_agreement": 2.0})
    assert 'scales = "blocks"' in caught.value.hint


def test_an_accepted_exception_is_recorded_in_the_manifest(llama, tmp_path):
    bundle = build_bundle(
        llama, tmp_path / "b", thresholds={"top1_agreement": 2.0}, accept_worse="a demo"
    )
    assert bundle.manifest.evidence.accepted_worse == "a demo"


def test_a_reason_without_a_miss_is_not_recorded(llama, tmp_path):
    bundle = build_bundle(llama, tmp_path / "b", accept_worse="to be sure")
    assert bundle.manifest.evidence.accepted_worse is None


def test_a_graph_that_computes_something_else_does_not_pass(llama, tmp_path, monkeypatch):
    other = checkpoints.save_decoder(tmp_path / "other", seed=1)
    right = decoder_build.write_decoder_graph
    monkeypatch.setattr(
        decoder_build,
        "write_decoder_graph",
        lambda _, *rest, **named: right(other, *rest, **named),
    )
    with pytest.raises(EvidenceError, match="perplexity_difference"):
        build_bundle(llama, tmp_path / "b")


def test_nothing_of_the_building_machine_is_in_the_bundle(llama, tmp_path):
    bundle = build_bundle(llama, tmp_path / "b")
    for name in (*bundle.manifest.files, "manifest.json"):
        assert str(tmp_path).encode() not in bundle.path(name).read_bytes()


def _adapter(base, out):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(out)
    (out / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    return out


def test_an_adapter_is_merged_and_its_chat_template_wins(llama, tmp_path):
    adapter = _adapter(llama, tmp_path / "adapter")
    plain = build_bundle(llama, tmp_path / "plain")
    tuned = build_bundle(llama, tmp_path / "tuned", adapter=adapter)
    assert tuned.manifest.evidence.figures["perplexity_difference"] < 1e-4
    before, after = (b.manifest.evidence.figures["perplexity_source"] for b in (plain, tuned))
    assert abs(after / before - 1) > 0.01
    assert tuned.path("chat_template.jinja").read_text() == "{{ messages[0].content }}!"
    assert "adapter_model.safetensors" in tuned.manifest.provenance.adapter


def test_an_adapter_of_another_base_is_refused(llama, tmp_path):
    wide = checkpoints.save_decoder(tmp_path / "wide", hidden_size=128)
    with pytest.raises(ConversionError, match="cannot be merged"):
        build_bundle(llama, tmp_path / "b", adapter=_adapter(wide, tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT says no more than that
def test_an_adapter_whose_names_match_nothing_is_refused(llama, tmp_path):
    adapter = _adapter(llama, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    renamed = {k.replace("self_attn", "attn"): v for k, v in load_file(path).items()}
    save_file(renamed, path)
    with pytest.raises(SourceError, match="do not fit its base"):
        build_bundle(llama, tmp_path / "b", adapter=adapter)


def test_a_reason_of_blanks_is_no_reason(llama, tmp_path):
    with pytest.raises(RecipeError, match="needs a reason"):
        build_bundle(llama, tmp_path / "b", accept_worse="  ")


@pytest.mark.slow
def test_the_built_in_text_is_repeated_until_it_tests_the_attention_window(tmp_path):
    source = checkpoints.save_decoder(
        tmp_path / "source", "gemma3", sliding_window=1300, max_position_embeddings=2048
    )
    figures = build_bundle(source, tmp_path / "b").manifest.evidence.figures
    assert figures["evaluated_tokens"] == 1950


def test_a_build_beside_another_of_the_same_name_leaves_it_alone(llama, tmp_path):
    running = tmp_path / ".b.partial-running"
    running.mkdir()
    descriptor = os.open(running, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    build_bundle(llama, tmp_path / "b")
    assert running.exists()
    os.close(descriptor)


def test_a_killed_build_is_swept_by_the_next(llama, tmp_path):
    leftover = tmp_path / ".b.partial-dead"
    leftover.mkdir()
    build_bundle(llama, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_an_existing_output_is_never_overwritten(llama, tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(RecipeError, match="exists already"):
        build_bundle(llama, tmp_path / "b")


def test_a_text_too_short_for_the_attention_window_is_refused(tmp_path):
    source = checkpoints.save_decoder(tmp_path / "source", "gemma3", sliding_window=128)
    text = tmp_path / "eval.txt"
    text.write_text("x" * 150)
    with pytest.raises(RecipeError, match="cannot test the model's attention window of 128"):
        build_bundle(source, tmp_path / "b", evaluation=text)


def _dialogues(tmp_path, *lines):
    path = tmp_path / "dialogues.jsonl"
    path.write_text("\n".join(lines))
    return path


def _dialogue(*contents):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return json.dumps({"messages": messages})


def test_of_dialogues_the_answers_are_scored(llama, tmp_path):
    dialogues = _dialogues(tmp_path, _dialogue("What?", "That."), _dialogue("a", "b", "c", "done"))
    bundle = build_bundle(llama, tmp_path / "b", evaluation=dialogues)
    figures = bundle.manifest.evidence.figures
    assert figures["scored_tokens"] == len("That.") + len("done")
    assert figures["evaluated_tokens"] == 70
    assert figures["perplexity_difference"] < 1e-4


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "no dialogues"),
        ("{", "line 1 is not valid JSON"),
        ('{"text": "x"}', "messages is missing"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "must end with an answer"),
        ('{"messages": [{"role": "user", "content": 1}]}', "must be a string"),
    ],
)
def test_a_line_that_is_no_dialogue_is_named(llama, tmp_path, line, complaint):
    with pytest.raises(RecipeError, match=complaint):
        build_bundle(llama, tmp_path / "b", evaluation=_dialogues(tmp_path, line))


def test_a_capped_context_is_what_the_bundle_says(llama, tmp_path):
    bundle = build_bundle(llama, tmp_path / "b", context_length=64)
    assert bundle.manifest.interface.context_length == 64


def _source(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "source")


def test_pickled_weights_are_refused(llama, tmp_path):
    source = _source(llama, tmp_path)
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(SourceError, match="pickled weights"):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "its own Python code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"architectures": ["NoSuchModel"]}, "transformers does not know"),
        ({"model_type": "no-such-type"}, "transformers cannot read"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(llama, tmp_path, changes, complaint):
    source = _source(llama, tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SourceError, match=complaint):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("generation_config.json", "{", "transformers cannot read"),
        ("tokenizer.json", "{", "tokenizer"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{", "not valid JSON"),
    ],
)
def test_a_damaged_file_of_the_source_is_named(llama, tmp_path, name, content, complaint):
    source = _source(llama, tmp_path)
    (source / name).write_text(content)
    with pytest.raises(SourceError, match=complaint):
        build_bundle(source, tmp_path / "b")


def test_a_chat_template_that_the_runtime_cannot_use_is_refused(llama, tmp_path):
    source = _source(llama, tmp_path)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}{{ 1 / 0 }}")
    with pytest.raises(ConversionError, match="cannot use the"):
        build_bundle(source, tmp_path / "b")


def test_weights_cut_off_in_the_middle_are_one_clear_error(llama, tmp_path):
    source = _source(llama, tmp_path)
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConversionError, match=r"The weights in .* cannot be read"):
        build_bundle(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"config\.json cannot be read"):
        build_bundle(tmp_path, tmp_path / "out" / "b")


def test_the_committed_fixture_is_still_what_the_exporter_builds(llama, tmp_path):
    built = build_bundle(llama, tmp_path / "tiny-decoder", adapter_rank=8)
    committed = read_bundle(DECODER)
    assert built.manifest.interface == committed.manifest.interface
    for name in ("model.onnx", "model-adapters.onnx"):
        assert built.manifest.files[name] == committed.manifest.files[name]
