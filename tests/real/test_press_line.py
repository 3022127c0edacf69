"""The fine-tune of a real language model, exported, served and examined."""

import json

import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.tokenizer import Tokenizer

from examples import bundles
from examples.demo import main as demo
from examples.press_line.answerers import ServedAnswerer
from examples.press_line.exam import examine
from examples.press_line.faults import load_catalogue, load_revision
from tests.support.serving import serving

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

REFERENCE = bundles.ROOT / "examples" / "base_models" / "gemma3_270m_reference_tokens.json"


@pytest.fixture(scope="module")
def press_line():
    return bundles.path_of("press-line", "cpu-int8")


@pytest.fixture(scope="module")
def press_line_2():
    return bundles.path_of("press-line-2", "cpu-int8")


def test_the_tokenizer_made_from_the_vocabulary_reads_as_llama_cpp_does():
    tokenizer = Tokenizer((bundles.checkpoint("gemma3_270m") / "tokenizer.json").read_bytes())
    reference = json.loads(REFERENCE.read_text("utf-8"))
    differing = [
        case["text"]
        for case in reference
        if tokenizer.encode(case["text"], add_special_tokens=True) != case["ids"]
    ]
    assert len(reference) > 20
    assert differing == []


def test_the_int8_bundle_is_within_one_percent_of_the_checkpoint(press_line):
    figures = read_bundle(press_line).manifest.evidence.figures
    assert figures["perplexity_increase"] <= 0.01
    assert figures["evaluated_tokens"] > 512  # longer than the model's attention window


def test_the_served_int8_bundle_passes_the_exam(press_line, tmp_path):
    with serving(tmp_path, [press_line]) as server:
        answerer = ServedAnswerer(address=server.address, model="press-line")
        result = examine(answerer, load_catalogue().exam_questions())
    assert result.share >= 0.8, str(result)


def test_the_second_version_keeps_most_integers_of_the_first(press_line, press_line_2):
    old, new = read_bundle(press_line), read_bundle(press_line_2)
    assert new.manifest.provenance.grid_of == old.digest
    assert (new.manifest.name, new.manifest.version) == ("press-line", "2")
    figures = new.manifest.evidence.figures
    assert figures["perplexity_increase"] <= 0.01
    assert figures["changed_weights"] < 0.2 * figures["quantized_weights"]
    assert figures["clipped_weights"] < 0.01 * figures["quantized_weights"]
    for name in ("model.onnx", "tokenizer.json", "chat_template.jinja"):
        assert new.manifest.files[name] == old.manifest.files[name]


def test_the_second_version_answers_what_changed_and_the_rest_as_before(press_line_2, tmp_path):
    with serving(tmp_path, [press_line_2]) as server:
        answerer = ServedAnswerer(address=server.address, model="press-line")
        result = examine(answerer, load_revision().exam_questions())
    assert result.share >= 0.8, str(result)
    changed = [answer for answer in result.answers if answer.question.code == "E-217"]
    assert all(answer.right for answer in changed), changed


def test_the_demo_ends_with_a_right_answer():
    assert demo() == 0
