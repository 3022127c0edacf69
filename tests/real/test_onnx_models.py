"""Real ONNX files, built as they are, and what they are for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from outpost_runtime import golden_file
from outpost_runtime.bundle import read_bundle
from outpost_runtime.sessions.ort import OrtSession
from PIL import Image, ImageDraw, ImageFont

from examples import bundles
from examples.base_models.onnx_models import features, frames
from examples.base_models.voice import RATE, silence, speak

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def _built(name):
    bundle = read_bundle(bundles.path_of(name, "cpu-fp32"))
    return bundle, OrtSession(bundle.path("model.onnx"))


def _image(text, size, height=32):
    """Black text on white, as the models see it: [1, 3, height, width], -1 to 1."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=height)
    draw.text((12, size[1] // 2), text, "black", font, anchor="lm")
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return pixels.transpose(2, 0, 1)[None].copy()


def _said(session, pixels, characters):
    """The likeliest character of each column, repeats and blanks left out."""
    (scores,) = session.run({"x": pixels}).values()
    best = scores[0].argmax(-1)
    return "".join(
        characters[index]
        for index, before in zip(best, [0, *best[:-1]], strict=True)
        if index not in (0, before)
    )


@pytest.mark.parametrize("text", ["E-104 oil pump", "Temperature 48.5", "KE2 / Halle 7"])
def test_a_line_of_text_is_read(text):
    bundle, session = _built("pp-ocr-rec")
    notes = onnx.load(bundle.path("model.onnx"), load_external_data=False).metadata_props
    alphabet = next(note.value for note in notes if note.key == "character")
    characters = ["", *alphabet.split("\n"), " "]
    assert len(characters) == session.outputs[0].shape[-1]
    assert _said(session, _image(text, (320, 48)), characters).strip() == text


def test_text_is_found_where_it_is():
    bundle, session = _built("pp-ocr-det")
    image = np.concatenate([_image("", (320, 160)), _image("PRESS LINE 4", (320, 96))], axis=2)
    (found,) = session.run({"x": image}).values()
    assert found.shape == (1, 1, 256, 320)
    assert found[0, 0, :150].max() < 0.3
    assert found[0, 0, 204:213, 30:190].mean() > 0.5
    assert bundle.manifest.licence == "apache-2.0"


def _probabilities(session, sound, *, carried=True):
    state = np.zeros((2, 1, 128), np.float32)
    probabilities = []
    for frame in frames(sound):
        feeds = {"input": frame, "state": state, "sr": np.array(RATE, np.int64)}
        outputs = session.run(feeds)
        state = outputs["stateN"] if carried else state
        probabilities.append(float(outputs["output"][0, 0]))
    return probabilities


def test_a_voice_is_told_from_silence_and_what_was_heard_is_remembered():
    bundle, session = _built("silero-vad")
    spoken, quiet = speak("aiuaiu"), silence(0.5)
    assert max(_probabilities(session, quiet)) < 0.1
    heard = _probabilities(session, np.concatenate([quiet, spoken]))
    assert np.mean(heard[18:]) > 0.9
    assert _probabilities(session, spoken, carried=False)[10:] != heard[-len(spoken) // 512 :][10:]
    interface = bundle.manifest.interface
    assert [(state.input, state.output) for state in interface.states] == [("state", "stateN")]
    assert interface.max_batch == 0


def test_the_golden_steps_of_the_voice_are_one_sequence():
    bundle, _ = _built("silero-vad")
    tensors = golden_file.load(bundle.path(bundle.manifest.evidence.golden))
    steps = int(bundle.manifest.evidence.figures["evaluated_inputs"])
    assert steps == len([name for name in tensors if name.endswith("/inputs/input")]) > 20
    for step in range(1, steps):
        carried = tensors[f"{step - 1}/outputs/stateN"]
        assert (tensors[f"{step}/inputs/state"] == carried).all()


PDF = b"""%PDF-1.4
1 0 obj
<< /Type /Catalog /Pages 2 0 R >>
endobj
2 0 obj
<< /Type /Pages /Kids [3 0 R] /Count 1 >>
endobj
3 0 obj
<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << >> >>
endobj
xref
0 4
0000000000 65535 f
trailer
<< /Size 4 /Root 1 0 R >>
startxref
190
%%EOF
"""


def test_files_are_told_apart_one_by_one_and_together():
    bundle, session = _built("magika")
    ours = Path(__file__).read_bytes()
    contents = {"python": ours, "pdf": PDF, "jsonl": b'{"press": 4, "oil": [48.5, 51.0]}\n' * 9}
    together = np.concatenate([features(content) for content in contents.values()])
    labels = bundle.manifest.interface.labels
    (scores,) = session.run({"bytes": together}).values()
    assert [labels[index] for index in scores.argmax(-1)] == list(contents)
    for row, content in enumerate(contents.values()):
        (alone,) = session.run({"bytes": features(content)}).values()
        assert alone[0] == pytest.approx(scores[row], abs=1e-5)
    assert bundle.manifest.interface.max_batch == 32


def test_a_sentence_encoders_bare_graph_gives_what_its_bundle_gives(tmp_path):
    from tests.support.building import build_bundle  # noqa: PLC0415 - imports torch

    encoder = read_bundle(bundles.path_of("all-minilm-l6-v2", "cpu-fp32"))
    bare = build_bundle(encoder.path("model.onnx"), tmp_path / "bare")
    assert bare.manifest.interface.inputs == encoder.manifest.interface.inputs
    assert bare.manifest.interface.max_batch == 32
    feeds = {spec.name: np.ones((2, 7), np.int64) for spec in bare.manifest.interface.inputs}
    got, wanted = (
        OrtSession(bundle.path("model.onnx")).run(feeds)["sentence_embedding"]
        for bundle in (bare, encoder)
    )
    assert got == pytest.approx(wanted, abs=1e-6)
