"""onnxruntime-genai's model folder: ``python -m bench.genai_folder CHECKPOINT OUT``.

Written by genai's own builder in int8, blocks of 32, with the corrections for Gemma 3
without which it stops, and with the embedding tied to the head, without which it is
three times the size: the weights and operators are those of Outpost's cpu-int8.

The Generator's graph computes the logits of the last token only (prefill is three times
faster). The Engine binds logits of every token and fails with such a graph, so there is
a second one without that step; both read the same weights.
"""

import json
import sys
import tempfile
from pathlib import Path

import onnx
from onnxruntime_genai.models import builder
from outpost_export import graph
from outpost_export.decoder_graph import Gemma3Builder
from outpost_export.quiet import quietly, silence_libraries

from bench.genai_engine_worker import GRAPH as ENGINE_GRAPH
from bench.workers import CONTEXT, THREADS

GENERATOR_GRAPH = "model.onnx"

_OPTIONS = [
    "prune_lm_head=true",
    "windowed_kv_cache=false",
    "block_size=32",
    "accuracy_level=4",  # int8 activations
]


def write_folder(checkpoint: Path, out: Path) -> None:
    """Write both graphs, their weights and ``genai_config.json`` into an existing folder."""
    builder.Gemma3Model = Gemma3Builder
    with tempfile.TemporaryDirectory() as scratch, quietly():
        arguments = (None, str(checkpoint), scratch, "int8", "cpu", scratch)
        parsed = builder.parse_extra_options(*arguments, _OPTIONS)
        parsed["hf_details"]["hf_config"].max_position_embeddings = CONTEXT
        builder.create_model(*arguments, **parsed)
        model = graph.load(Path(scratch) / "model.onnx")
        config = json.loads((Path(scratch) / "genai_config.json").read_text("utf-8"))
    assert graph.tie_embedding_to_head(model)
    graph.save(model, out / GENERATOR_GRAPH)
    _write_engine_graph(out)
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    (out / "genai_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _write_engine_graph(out: Path) -> None:
    model = onnx.load(out / GENERATOR_GRAPH, load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    pruned, widened = nodes["/lm_head/prune/Gather"], nodes["/lm_head/prune/Unsqueeze"]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == widened.output[0]:
                node.input[index] = pruned.input[0]
    model.graph.node.remove(pruned)
    model.graph.node.remove(widened)
    logits = next(output for output in model.graph.output if output.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    onnx.save(model, out / ENGINE_GRAPH)


if __name__ == "__main__":
    silence_libraries()
    write_folder(Path(sys.argv[1]), Path(sys.argv[2]))
