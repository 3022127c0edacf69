"""Who is measured."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bench import peers
from bench.workers import Launch
from examples import bundles

OURS = "Outpost cpu-int8"
SCREENED = f"{OURS}, screened head"
COMPARED = (OURS, SCREENED)
"""What the peers are compared with."""

_BUNDLES = {
    OURS: ("gemma-3-270m", "cpu-int8"),
    SCREENED: ("gemma-3-270m-screened", "cpu-int8"),
    "Outpost cpu-fp32": ("gemma-3-270m", "cpu-fp32"),
}
"""Outpost's contestants: example and target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """An engine with a model.

    Attributes:
        model_bytes: Weights and graph on disk.
        unread_bytes: Of these, what a token at one stream does not read.
        peer: Whether it is somebody else's.
        weights_of: The contestant whose weights it shares, if it cannot be asked for perplexity.
    """

    launch: Launch
    model_bytes: int
    unread_bytes: int = 0
    peer: bool = True
    weights_of: str | None = None

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return self.launch.name


def contestants(outposts: Mapping[str, Path]) -> list[Contestant]:
    """Return everybody, with all that they need made.

    Args:
        outposts: Outpost's bundles by name of the contestant.
    """
    ours = [_outpost(name, folder) for name, folder in outposts.items()]
    return [*ours, *_llama_cpp(), *_genai(), *_openvino()]


def bundle_folders(built: Path | None) -> dict[str, Path]:
    """Return Outpost's bundles by contestant, built if there is no folder that has them."""
    if built:
        return {name: built / "-".join(source) for name, source in _BUNDLES.items()}
    return {name: bundles.path_of(*source) for name, source in _BUNDLES.items()}


def endless(bundle: Path, out: Path) -> Path:
    """Return a copy, by links, of a bundle whose answers do not end by themselves."""
    out.mkdir(parents=True)
    for path in bundle.iterdir():
        if path.name != "manifest.json":
            os.link(path, out / path.name)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["interface"]["end_tokens"] = []
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def _outpost(name: str, folder: Path) -> Contestant:
    launch = Launch(name=name, module="bench.outpost_worker", arguments=(str(folder),))
    size = _bytes(folder, "model.onnx*")
    unread = _screened_bytes(folder) if name == SCREENED else 0
    return Contestant(launch=launch, model_bytes=size, unread_bytes=unread, peer=False)


def _screened_bytes(folder: Path) -> int:
    """Return the size of the table of which a screened head reads the likeliest tokens' rows."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tables = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    return max(math.prod(table.dims) for table in tables)


def _llama_cpp() -> list[Contestant]:
    python = peers.llama_cpp_python()
    return [
        Contestant(
            launch=Launch(
                name=f"llama.cpp {kind}",
                module="bench.llama_cpp_worker",
                arguments=(str(path),),
                python=python,
            ),
            model_bytes=path.stat().st_size,
        )
        for kind, path in (("Q8_0", peers.gguf_q8()), ("Q4_K_M", peers.gguf()))
    ]


def _genai() -> list[Contestant]:
    folder = peers.genai_folder()
    arguments, size = (str(folder),), _bytes(folder, "model.onnx*")
    generator = Launch(
        name="genai Generator int8", module="bench.genai_worker", arguments=arguments
    )
    engine = Launch(
        name="genai Engine int8", module="bench.genai_engine_worker", arguments=arguments
    )
    return [
        Contestant(launch=generator, model_bytes=size),
        Contestant(launch=engine, model_bytes=size, weights_of=generator.name),
    ]


def _openvino() -> list[Contestant]:
    folder, python = peers.openvino_folder(), peers.openvino_python()
    return [
        Contestant(
            launch=Launch(
                name=f"OpenVINO int8, {precision}",
                module="bench.openvino_worker",
                arguments=(str(folder), precision),
                python=python,
            ),
            model_bytes=_bytes(folder, "openvino_model.*"),
        )
        for precision in ("bf16", "f32")
    ]


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
