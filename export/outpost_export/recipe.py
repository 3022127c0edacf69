"""The recipe: what to build from a source. Frozen, and hashed into the manifest.

A recipe file is TOML; every key may be missing::

    name = "press-line"            # default: the name of the output folder
    version = "3"
    task = "text-generation"       # default: inferred from the checkpoint
    licence = "gemma"              # default: what the checkpoint's card says
    context_length = 2048          # decoders: positions that a device will hold
    scales = "columns"             # cpu-int8 decoders: weights that share a scale; or "blocks"
    block_size = 32                # weights in a block, where these share a scale
    head = "screened"              # cpu-int8 decoders with a tied head: faster, larger, not for
                                   # answers in a form (JSON, …)
    adapter_rank = 0               # decoders: largest rank of adapters served with it; 0: none
    max_batch = 32                 # ONNX files: rows of a run, if it can be shared; 0: never
    labels = ["ok", "scratched"]   # ONNX files: names of a classifier's classes

    [dimensions]                   # ONNX files: sizes of named free dimensions in the evidence
    height = 640

    [[states]]                     # ONNX files: an output that is the next run's input
    input = "state"
    output = "stateN"

    [thresholds]                   # what the evidence must show; see gate.py
    perplexity_increase = 0.02
"""

import hashlib
import re
import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from outpost_runtime.documents import Reader, canonical_json
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.interface import StateSpec

from outpost_export.errors import RecipeError
from outpost_export.gate import RULES

COLUMNS, BLOCKS = "columns", "blocks"
"""What has one scale of quantized weights: a whole output channel, or a few of its weights."""

SCREENED = "screened"
"""Heads that compute all tokens' logits in 4 bits, and the likeliest tokens' in 8 again."""

BITS_OF_TARGET: dict[str, int | None] = {"cpu-fp32": None, "cpu-int8": 8, "cpu-int4": 4}
"""Targets, and the bits of their weights; None is float32."""

DECODER_TASK = "text-generation"
EMBEDDING_TASK = "feature-extraction"
CLASSIFIER_TASKS = ("text-classification", "token-classification")
TENSOR_TASK = "tensor-inference"
TASKS = (DECODER_TASK, EMBEDDING_TASK, *CLASSIFIER_TASKS, TENSOR_TASK)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHORTEST_CONTEXT = 64  # the evidence continues prompts by 32 tokens
_SCALES = (COLUMNS, BLOCKS)
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_HIGHEST_RANK = 512
_OF_ONNX_FILES = ("max_batch", "labels", "dimensions", "states")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What to build; None means "as the source says".

    Raises:
        RecipeError: A value is outside of what can be built.
    """

    target: str
    name: str
    version: str = "1"
    task: str | None = None
    licence: str | None = None
    context_length: int = 2048
    scales: str | None = None
    block_size: int = 32
    head: str | None = None
    adapter_rank: int = 0
    max_batch: int | None = None
    labels: tuple[str, ...] = ()
    dimensions: dict[str, int] = field(default_factory=dict)
    states: tuple[StateSpec, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            (
                self.target in BITS_OF_TARGET,
                f"target '{self.target}' is not one of",
                BITS_OF_TARGET,
            ),
            (self.task is None or self.task in TASKS, f"task '{self.task}' is not one of", TASKS),
            (self.scales in (None, *_SCALES), f"scales '{self.scales}' are not one of", _SCALES),
            (self.head in (None, SCREENED), f"head '{self.head}' is not one of", (SCREENED,)),
            (self.block_size in _BLOCK_SIZES, "block_size is not one of", _BLOCK_SIZES),
        )
        for holds, problem, known in checks:
            if not holds:
                raise RecipeError(f"The {problem} {', '.join(map(str, known))}.")
        for key, value in (("name", self.name), ("version", self.version)):
            if not _NAME.fullmatch(value):
                raise RecipeError(
                    f"The {key} '{value}' must be lower-case letters, digits, '.', '_' and '-', "
                    "at most 63.",
                    hint=f"Choose another with --{key}.",
                )
        sizes = (
            (
                self.context_length >= _SHORTEST_CONTEXT,
                f"context_length must be at least {_SHORTEST_CONTEXT}",
            ),
            (
                0 <= self.adapter_rank <= _HIGHEST_RANK,
                f"adapter_rank must be from 0 to {_HIGHEST_RANK}",
            ),
            ((self.max_batch or 0) >= 0, "max_batch must not be negative"),
            (min(self.dimensions.values(), default=1) >= 1, "dimensions must be at least 1"),
        )
        for holds, rule in sizes:
            if not holds:
                raise RecipeError(f"The {rule}.")

    @property
    def bits(self) -> int | None:
        """Bits of the weights; None is float32."""
        return BITS_OF_TARGET[self.target]

    def with_defaults(self, *, task: str, licence: str, rounding: float = 0.0) -> "Recipe":
        """Return the recipe completed by what was found in the source.

        Args:
            rounding: Of ONNX files: how far answers may be off, relatively.
        """
        recipe = replace(self, task=self.task or task, licence=self.licence or licence)
        if recipe.adapter_rank and recipe.task != DECODER_TASK:
            raise RecipeError(f"Only models for {DECODER_TASK} take adapters: set no adapter_rank.")
        if recipe.head and not _in_8_bits(recipe):
            raise RecipeError(
                f"Only cpu-int8 models for {DECODER_TASK} can have head = '{recipe.head}'."
            )
        if recipe.task != TENSOR_TASK:
            _refuse_keys_of_onnx_files(recipe)
        return replace(
            recipe,
            scales=_scales(recipe),
            thresholds=_default_thresholds(recipe, rounding) | self.thresholds,
        )

    @property
    def sha256(self) -> str:
        """Digest of the recipe's canonical JSON."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()


def read_recipe(
    path: Path | None,
    *,
    target: str,
    name: str | None,
    default_name: str,
    task: str | None = None,
    version: str | None = None,
    adapter_rank: int | None = None,
) -> Recipe:
    """Read a recipe file, or make a recipe without one; what is named beside it wins.

    Raises:
        RecipeError: The file is no TOML, or has unknown, wrong or impossible values.
    """
    try:
        document = {} if path is None else tomllib.loads(path.read_text("utf-8"))
        reader = Reader(document, path=str(path or "recipe"))
        in_file_task = reader.optional("task", reader.string)
        in_file = reader.string("name", default_name), reader.string("version", "1")
        in_file_rank = reader.integer("adapter_rank", 0)
        thresholds = reader.optional("thresholds", reader.table)
        recipe = Recipe(
            target=target,
            name=name or in_file[0],
            version=version or in_file[1],
            task=task or in_file_task,
            licence=reader.optional("licence", reader.string),
            context_length=reader.integer("context_length", 2048),
            scales=reader.optional("scales", reader.string),
            block_size=reader.integer("block_size", 32),
            head=reader.optional("head", reader.string),
            adapter_rank=in_file_rank if adapter_rank is None else adapter_rank,
            max_batch=reader.optional("max_batch", reader.integer),
            labels=tuple(reader.optional("labels", lambda key: reader.list_of(key, str)) or ()),
            dimensions=_dimensions(reader),
            states=tuple(_state(table) for table in reader.optional("states", reader.tables) or ()),
            thresholds=_thresholds(thresholds) if thresholds else {},
        )
        reader.end()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.") from error
    except InvalidInputError as error:
        raise RecipeError(error.message, hint="See 'outpost-export build --help'.") from error
    return recipe


def _dimensions(reader: Reader) -> dict[str, int]:
    table = reader.optional("dimensions", reader.table)
    return {} if table is None else table.named(int)


def _state(reader: Reader) -> StateSpec:
    state = StateSpec(input=reader.string("input"), output=reader.string("output"))
    reader.end()
    return state


def _refuse_keys_of_onnx_files(recipe: Recipe) -> None:
    for key in _OF_ONNX_FILES:
        if getattr(recipe, key) not in (None, (), {}):
            raise RecipeError(f"The recipe's {key} is for ONNX files; the source is none.")


def _thresholds(reader: Reader) -> dict[str, float]:
    values = reader.numbers()
    for key in values:
        if key not in RULES:
            raise reader.fault(key, f"is not one of {', '.join(RULES)}")
    return values


def _in_8_bits(recipe: Recipe) -> bool:
    return recipe.task == DECODER_TASK and recipe.bits == 8  # noqa: PLR2004 - bits


def _scales(recipe: Recipe) -> str | None:
    """Return what shares a scale; only products of 8 bits can do with one per column.

    Raises:
        RecipeError: The recipe asks for what cannot be built.
    """
    if _in_8_bits(recipe):
        return recipe.scales or COLUMNS
    if recipe.scales == COLUMNS:
        raise RecipeError(f"Only cpu-int8 models for {DECODER_TASK} can have scales = 'columns'.")
    return None if recipe.bits is None else BLOCKS


def _default_thresholds(recipe: Recipe, rounding: float) -> dict[str, float]:
    exact = recipe.bits is None
    if recipe.task == DECODER_TASK:
        if exact:
            return {"perplexity_difference": 0.001, "greedy_tokens": 32.0}
        return {"perplexity_increase": 0.01}
    if recipe.task == TENSOR_TASK:
        return {"repeat_difference": 1e-6, "relative_difference": rounding}
    if recipe.task == EMBEDDING_TASK:
        return {"cosine": 0.999 if exact else 0.99}
    return {"label_agreement": 1.0, "max_difference": 1e-3} if exact else {"label_agreement": 0.95}
