"""Decoder graphs, written by onnxruntime-genai's model builder and corrected where it errs.

The builder (``onnxruntime_genai.models.builder``, verified with 0.18.0 against
transformers 5.23) is right for Llama, Qwen 2 and 3, and Phi 3. For Gemma 3 it has
faults; :class:`Gemma3Builder` corrects them and names each, so that it can be
deleted when upstream is right. Whatever else it may get wrong, the evidence of
the build finds: no graph leaves the exporter unmeasured.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from onnxruntime_genai.models import builder
from onnxruntime_genai.models.builders import Gemma3Model

from outpost_export import block_graph, graph, int8_graph
from outpost_export.calibration import observed
from outpost_export.errors import RecipeError
from outpost_export.grid import FreshGrid, FrozenGrid, Grid
from outpost_export.quiet import quietly
from outpost_export.recipe import BLOCKS, COLUMNS, SCREENED, Recipe


class Gemma3Builder(Gemma3Model):  # type: ignore[misc]  # upstream is untyped
    """Gemma 3 as transformers 5 computes it.

    Upstream faults, all seen with onnxruntime-genai 0.18.0:

    1. transformers 5 nests ``rope_parameters`` by layer type; the builder expects
       them flat and stops with ``KeyError: 'rope_type'``.
    2. The builder reads ``rope_theta`` and ``rope_local_base_freq`` from the top of
       the configuration, where transformers 5 no longer has them.
    3. The linear RoPE scaling of the global layers is applied to the local layers too.
    4. The embedding scale is rounded to two decimals.
    """

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.embed_attrs["scale"] = float(np.float32(self.hidden_size**0.5))  # fault 4

    def make_config_init(self, config: Any) -> None:
        """Flatten the RoPE parameters before anything reads them (faults 1 and 2)."""
        super().make_config_init(config)
        rope = config.rope_parameters
        if "full_attention" in rope:
            config.rope_theta = rope["full_attention"]["rope_theta"]
            config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
            config.rope_parameters = dict(rope["full_attention"])

    def make_rotary_embedding_caches_from_scratch(self) -> Any:
        """Compute one cache; the local one, which comes last, without scaling (fault 3)."""
        if self.rope_attrs["theta"] == self.rope_local_theta:
            self.rope_attrs["rescale_factors"] = 1
        return super().make_rotary_embedding_caches_from_scratch()


def write_decoder_graph(
    checkpoint: Path,
    out: Path,
    recipe: Recipe,
    *,
    context_length: int,
    calibration: Sequence[int],
    grid: FrozenGrid | None = None,
) -> dict[str, float]:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``out``.

    Args:
        checkpoint: Folder saved by transformers 5.
        out: An existing folder.
        recipe: Complete. With scales per column or a screened head, see ``int8_graph.py``.
        context_length: Positions for which RoPE caches are written.
        calibration: Tokens of a text, by what layers read of which these are quantized.
        grid: The predecessor's, to quantize on.

    Returns:
        Evidence on the grid, if there is one.

    Raises:
        RecipeError: The predecessor is another kind of model, or the recipe is for another kind.
        Exception: Whatever the builder raises; it has no error classes of its own.
    """
    options = [
        "prune_lm_head=true",  # without it prefill is three times slower; see the pass below
        "windowed_kv_cache=false",
    ]
    with tempfile.TemporaryDirectory() as scratch, _corrected_builder(), quietly():
        arguments = (None, str(checkpoint), scratch, "fp32", "cpu", scratch)
        parsed = builder.parse_extra_options(*arguments, options)
        config = parsed["hf_details"]["hf_config"]
        _check_head(recipe, config)
        _cap_context(config, context_length)
        builder.create_model(*arguments, **parsed)
        path = Path(scratch) / "model.onnx"
        model = graph.load(path)
        graph.fix_head_dim(model, _head_dim(config))
        graph.choose_logits_at_run_time(model)
        steps: Grid = grid or FreshGrid()
        if grid is None and _observes(recipe):
            names = list(int8_graph.linears(model))
            graph.save(model, path)
            steps = FreshGrid(observed(path, calibration[:context_length], names))
            model = graph.load(path)  # saving moved its weights out
        clipped = _quantize(model, steps, recipe, tied=bool(config.tie_word_embeddings))
    graph.save(model, out / "model.onnx")
    return {} if grid is None else grid.compare(out / "model.onnx", clipped)


def _quantize(model: ModelProto, grid: Grid, recipe: Recipe, *, tied: bool) -> int:
    if recipe.bits is None:
        return 0
    if _observes(recipe):
        return int8_graph.quantize(
            model,
            grid,
            tied=tied,
            block_size=recipe.block_size,
            screened=recipe.head == SCREENED,
            in_blocks=recipe.scales == BLOCKS,
        )
    clipped = block_graph.quantize(model, grid, bits=recipe.bits, block_size=recipe.block_size)
    if tied:
        graph.tie_embedding_to_head(model)
    return clipped


def _observes(recipe: Recipe) -> bool:
    """Say whether something is quantized by what it reads of a text."""
    return recipe.scales == COLUMNS or recipe.head == SCREENED


def _check_head(recipe: Recipe, config: Any) -> None:
    if recipe.head == SCREENED and not config.tie_word_embeddings:
        raise RecipeError(
            "This model's head is not its embedding, and cannot be screened.",
            hint="Leave head out of the recipe.",
        )


def _head_dim(config: Any) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def _cap_context(config: Any, context_length: int) -> None:
    # RoPE caches for 32k positions cost 67 MB that a device with a 2k context never reads.
    # Long-RoPE variants choose their factors by this very number, so theirs stays.
    if getattr(config, "original_max_position_embeddings", None) is None:
        config.max_position_embeddings = min(config.max_position_embeddings, context_length)


@contextlib.contextmanager
def _corrected_builder() -> Iterator[None]:
    upstream = builder.Gemma3Model
    builder.Gemma3Model = Gemma3Builder
    try:
        yield
    finally:
        builder.Gemma3Model = upstream
