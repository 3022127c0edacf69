"""What all servers are asked: the same requests, cut from the exporter's evaluation text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import outpost_export
from inference import grpc_service_pb2 as pb
from numpy.typing import NDArray
from outpost_runtime.bundle import read_bundle
from outpost_runtime.interface import EmbeddingInterface, TensorInterface
from outpost_runtime.tensors import TensorSpec
from outpost_runtime.tokenizer import Tokenizer

from bench.workers import ROOT, THREADS
from examples import bundles

REQUESTS = 64
"""Different ones; callers take them in turn."""

SENTENCE_TOKENS = (8, 64)
"""Of a request to the sentence encoder, both ends included, markers counted."""

TINY_TOKENS = 16
"""Of every request to the classifier: MLServer can only batch requests of one length."""

_STEP = 37
"""How lengths follow each other, modulo their range: each comes once before one comes again."""

_TINY = ROOT / "tests" / "fixtures" / "tiny-classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A bundle, and what its servers are asked.

    Attributes:
        mixed_lengths: Whether requests differ in shape.
        threads: Of a run, in every server: the classifier is too small for two.
        requests: Encoded ``ModelInferRequest`` messages, one sentence each.
    """

    name: str
    folder: Path
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    mixed_lengths: bool
    threads: int
    requests: tuple[bytes, ...]

    @property
    def graph(self) -> Path:
        """The file that ONNX Runtime opens."""
        return self.folder / "model.onnx"


def read_models() -> list[Model]:
    """Return the sentence encoder and the classifier, the encoder exported if need be."""
    least, most = SENTENCE_TOKENS
    lengths = [least + index * _STEP % (most - least + 1) for index in range(REQUESTS)]
    return [
        _model(bundles.path_of("all-minilm-l6-v2", "cpu-fp32"), lengths, THREADS),
        _model(_TINY, [TINY_TOKENS] * REQUESTS, 1),
    ]


def feeds(request: bytes) -> dict[str, NDArray[np.int64]]:
    """Return the tensors of a request."""
    message = pb.ModelInferRequest.FromString(request)
    pairs = zip(message.inputs, message.raw_input_contents, strict=True)
    return {tensor.name: np.frombuffer(raw, "<i8").reshape(tensor.shape) for tensor, raw in pairs}


def _model(folder: Path, lengths: list[int], threads: int) -> Model:
    manifest = read_bundle(folder).manifest
    interface = manifest.interface
    assert isinstance(interface, EmbeddingInterface | TensorInterface)
    names = tuple(spec.name for spec in interface.inputs)
    sentences = _sentences(folder / "tokenizer.json", lengths)
    return Model(
        name=manifest.name,
        folder=folder,
        inputs=names,
        outputs=tuple(interface.outputs),
        mixed_lengths=len(set(lengths)) > 1,
        threads=threads,
        requests=tuple(_request(manifest.name, names, ids) for ids in sentences),
    )


def _sentences(tokenizer_file: Path, lengths: list[int]) -> Iterable[list[int]]:
    text = Path(outpost_export.__file__).with_name("evaluation_text.txt").read_text("utf-8")
    tokenizer = Tokenizer(tokenizer_file.read_bytes())
    begin, end = tokenizer.encode("", add_special_tokens=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    for index, length in enumerate(lengths):
        start = index * SENTENCE_TOKENS[1] % (len(ids) - length)
        yield [begin, *ids[start : start + length - 2], end]


def _request(model: str, names: Sequence[str], ids: list[int]) -> bytes:
    """Encode token ids; whatever input is not the ids or the mask is a token's type, 0."""
    values = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    message = pb.ModelInferRequest(model_name=model)
    for name in names:
        message.inputs.add(name=name, datatype="INT64", shape=[1, len(ids)])
        array = np.array(values.get(name, [0] * len(ids)), "<i8")
        message.raw_input_contents.append(array.tobytes())
    return message.SerializeToString()
