"""A real sentence encoder over gRPC, against sentence-transformers."""

import numpy as np
import pytest
from outpost_runtime.client import Client
from sentence_transformers import SentenceTransformer

from examples import bundles
from examples.press_line.faults import load_catalogue
from tests.support.serving import serving

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("target", "least"), [("cpu-fp32", 0.999), ("cpu-int8", 0.99)])
def test_fifty_sentences_embed_as_sentence_transformers_embeds_them(target, least, tmp_path):
    sentences = [question.question for question in load_catalogue().exam_questions()][:49]
    sentences.append("a sentence that is longer than the model reads " * 40)
    bundle = bundles.path_of("all-minilm-l6-v2", target)
    with serving(tmp_path, [bundle]) as server, Client(server.address) as client:
        got = np.array(client.embed("all-minilm-l6-v2", sentences))
    folder = str(bundles.checkpoint("all_minilm_l6_v2"))
    expected = SentenceTransformer(folder, device="cpu").encode(sentences)
    cosines = (got * expected).sum(1) / np.linalg.norm(expected, axis=1)
    assert len(cosines) == 50
    assert cosines.min() >= least
