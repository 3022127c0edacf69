"""What quantized weights are counted in: steps of their own, or those of a predecessor.

An update is small where few integers change. A fine-tune moves weights a little, but it moves
nearly every scale, and with its own scales nearly every integer is another. On a predecessor's
*frozen grid* (its scales, its smoothing factors, and its choice of what stays in blocks) a weight
that moved by less than half a step keeps its integer, and what was not trained keeps all of them,
bit by bit. What it costs: weights beyond the frozen range are clipped. They are counted, and the
gate decides (docs/adr/0009).

1. The predecessor is whole: every file has its digest.
2. It was built for the same task and target, from a recipe with the same shape.
3. Every scale that is asked for is there, in the shape of the weights.
4. The finished graph keeps its weights where the predecessor's does, so that blocks correspond.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper
from outpost_runtime.bundle import Bundle, read_bundle, verify
from outpost_runtime.interface import AdapterInterface

from outpost_export import columns, graph
from outpost_export.blocks import Floats
from outpost_export.errors import RecipeError
from outpost_export.recipe import Recipe

INVERSE = "/inverse_factors"
"""Suffix of the tensor that what layers read is multiplied with; layers in blocks have none."""

USUAL = "/usual"
"""Suffix of the tensor that is the mean of what a head reads."""

_MOST_ERROR = 3e-4
"""Of layers' outputs (see ``columns.py``); above it, they are quantized in blocks."""

_SHAPING = ("task", "target", "context_length", "scales", "block_size", "head")
_HALVES = "_Q4"
_FRESH = "Leave --on-grid-of out: the build gets a grid of its own, and its update is larger."


class Grid(Protocol):
    """Chooses the steps of quantized weights."""

    def inverse_factors(
        self, hidden: str, weights: Sequence[Floats], *, blocks_fit: bool
    ) -> Floats | None:
        """Return what layers' inputs are multiplied with; None leaves the layers in blocks.

        Args:
            hidden: Name of what they read.
            weights: [channels, outputs] of each.
            blocks_fit: They can be in blocks.
        """

    def usual(self, hidden: str) -> Floats:
        """Return the mean of what layers read, [channels]."""

    def scales(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """Return the scales of this name; None lets the weights have their own."""


@dataclass(frozen=True, slots=True)
class FreshGrid:
    """Every weight has the scale that fits it best.

    Attributes:
        observed: What layers have read on some text, [tokens, channels], by name; needed for
            scales per column only.
    """

    observed: Mapping[str, Floats] = field(default_factory=dict)

    def inverse_factors(
        self, hidden: str, weights: Sequence[Floats], *, blocks_fit: bool
    ) -> Floats | None:
        """Balance weights against what is multiplied with them."""
        found = columns.balance(self.observed[hidden], weights)
        if blocks_fit and found.error > _MOST_ERROR:
            return None
        return np.float32(1) / found.factors

    def usual(self, hidden: str) -> Floats:
        """Return the mean of what was observed."""
        mean: Floats = self.observed[hidden].mean(0)
        return mean

    def scales(self, name: str, shape: tuple[int, ...]) -> None:
        """Let the weights have their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenGrid:
    """The steps of a predecessor's weights.

    Attributes:
        bundle: The predecessor's digest.
        name: What its manifest calls it.
        tensors: Of its graph, with their values, by name.
        layout: Where its weights lie; see :func:`layout_of`.
    """

    bundle: str
    name: str
    tensors: Mapping[str, TensorProto]
    layout: tuple[Any, ...]

    def inverse_factors(
        self, hidden: str, weights: Sequence[Floats], *, blocks_fit: bool
    ) -> Floats | None:
        """Return the predecessor's; None if it left these layers in blocks.

        Raises:
            RecipeError: It did, and these cannot be.
        """
        name = hidden + INVERSE
        if name not in self.tensors and blocks_fit:
            return None
        return self.scales(name, weights[0].shape[:1])

    def usual(self, hidden: str) -> Floats:
        """Return the predecessor's.

        Raises:
            RecipeError: It has none.
        """
        return self.scales(hidden + USUAL, tuple(self.tensors[hidden + INVERSE].dims))

    def scales(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return the predecessor's.

        Raises:
            RecipeError: It has none of this name and shape.
        """
        tensor = self.tensors.get(name)
        if tensor is None or tuple(tensor.dims) != shape:
            found = "none" if tensor is None else f"one of shape {list(tensor.dims)}"
            raise self._other(f"{name} has shape {list(shape)} here, and there is {found} there")
        values: Floats = numpy_helper.to_array(tensor)
        return values

    def compare(self, path: Path, clipped: int) -> dict[str, float]:
        """Return the evidence on a graph that was built on this grid.

        Args:
            path: The finished graph, weights beside it.
            clipped: Weights that the scales did not reach.

        Raises:
            RecipeError: Its weights lie elsewhere than the predecessor's.
        """
        if layout_of(path) != self.layout:
            raise self._other("its weights lie elsewhere in the data file")
        built = list(_integers(graph.load(path).graph.initializer))
        changed = sum(_differing(new, self.tensors[new.name]) for new in built)
        return {
            "quantized_weights": float(sum(map(_count, built))),
            "clipped_weights": float(clipped),
            "changed_weights": float(changed),
        }

    def _other(self, what: str) -> RecipeError:
        return RecipeError(
            f"This model cannot be built on the grid of '{self.name}', which has another "
            f"architecture or comes from another version of the exporter: {what}.",
            hint=_FRESH,
        )


def read_grid(folder: Path, recipe: Recipe) -> FrozenGrid:
    """Return the grid of a bundle, for a build by this recipe.

    Raises:
        BundleError: The bundle is damaged.
        RecipeError: Nothing that this recipe builds can be on its grid.
    """
    if recipe.bits is None:
        raise RecipeError(
            f"A build for {recipe.target} has no grid.", hint="Leave --on-grid-of out."
        )
    bundle = read_bundle(folder)
    _check_recipe(bundle, recipe)
    verify(bundle)
    interface = bundle.manifest.interface
    if isinstance(interface, AdapterInterface):
        raise RecipeError(f"'{bundle.manifest.name}' is an adapter, which has no grid.")
    path = bundle.path(interface.model)
    return FrozenGrid(
        bundle=bundle.digest,
        name=bundle.manifest.name,
        tensors={tensor.name: tensor for tensor in graph.load(path).graph.initializer},
        layout=layout_of(path),
    )


def layout_of(path: Path) -> tuple[Any, ...]:
    """Return name, type, shape, offset and length of each tensor in a graph's data file."""
    model: ModelProto = onnx.load(path, load_external_data=False)
    rows = []
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            place = external_data_helper.ExternalDataInfo(tensor)
            shape = tuple(tensor.dims)
            rows.append((tensor.name, tensor.data_type, shape, place.offset, place.length))
    return tuple(rows)


def _check_recipe(bundle: Bundle, recipe: Recipe) -> None:
    theirs, name = bundle.manifest.provenance.recipe, bundle.manifest.name
    for key in _SHAPING:
        mine = getattr(recipe, key)
        if theirs.get(key) != mine:
            raise RecipeError(
                f"The {key} of '{name}' is {theirs.get(key)}, and of this build {mine}: "
                "it cannot be built on that grid.",
                hint=f"Use the recipe of '{name}', or leave --on-grid-of out.",
            )


def _integers(tensors: Iterable[TensorProto]) -> Iterable[TensorProto]:
    # Zero points are integers, too, but they have one dimension and no step.
    for tensor in tensors:
        if tensor.data_type == TensorProto.UINT8 and len(tensor.dims) > 1:
            yield tensor


def _count(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims)) * (2 if tensor.name.endswith(_HALVES) else 1)


def _differing(new: TensorProto, old: TensorProto) -> int:
    change = numpy_helper.to_array(new) ^ numpy_helper.to_array(old)
    if not new.name.endswith(_HALVES):
        return int(np.count_nonzero(change))
    return int(np.count_nonzero(change & 15) + np.count_nonzero(change >> 4))
