"""What a bundle is to callers: text, embeddings, plain tensors, an adapter; or a box's system."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from outpost_runtime.documents import Reader
from outpost_runtime.tensors import NUMPY_TYPES, TensorSpec

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """What a text request gets that sets nothing; see ``outpost.v1.GenerationParameters``."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearShape:
    """Sizes of one linear layer: numbers that go in, numbers that come out."""

    inputs: int
    outputs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSupport:
    """How a decoder takes adapters; see ``text/adapters.py``.

    Attributes:
        model: A second graph of the same weights, with inputs for adapters.
        rank: Largest rank of an adapter that it takes.
        linears: The layers that an adapter can change, by their names in the checkpoint.
    """

    model: str
    rank: int
    linears: dict[str, LinearShape]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTable:
    """Where a decoder's token embeddings lie that its graph takes as an input.

    Attributes:
        file: The one with the graph's weights.
        start: First byte of token 0's row; the others follow without gaps.
        tokens: Rows.
        row_bytes: Of one row.
    """

    file: str
    start: int
    tokens: int
    row_bytes: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.tokens * self.row_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInterface:
    """A decoder: text in, text out.

    Attributes:
        context_length: Tokens of prompt and answer together, at most.
        end_tokens: Ids that end an answer.
        chat_template: A Jinja file, or None for a model that only completes text.
        adapters: How it takes adapters, or None if it takes none.
        token_table: See ``text/token_table.py``; None: the graph has its embeddings inside.
    """

    model: str
    tokenizer: str
    chat_template: str | None
    context_length: int
    end_tokens: tuple[int, ...]
    special_tokens: dict[str, str]
    defaults: GenerationDefaults
    adapters: AdapterSupport | None = None
    token_table: TokenTable | None = None
    kind: Literal["text"] = field(default="text", init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterInterface:
    """A LoRA adapter: what a base's linear layers learned; served with its base only.

    None means "as the base has it".

    Attributes:
        weights: A safetensors file; see ``text/adapters.py``.
        rank: Largest rank of its layers.
        base: Digest of the base's bundle, which must be this very one.
        base_name: The base's name, for messages.
        chat_template: A Jinja file that takes the place of the base's.
        end_tokens: Ids that end an answer.
    """

    weights: str
    rank: int
    base: str
    base_name: str
    chat_template: str | None
    end_tokens: tuple[int, ...] | None
    defaults: GenerationDefaults | None
    kind: Literal["adapter"] = field(default="adapter", init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingInterface:
    """A sentence encoder: text in, one vector out, pooling and normalization in the graph.

    Attributes:
        max_tokens: Longer texts are cut.
        max_batch: Texts in one run, at most.
    """

    model: str
    tokenizer: str
    max_tokens: int
    max_batch: int
    dimension: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: Literal["embeddings"] = field(default="embeddings", init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """A tensor that a model carries from run to run: an output that is the next run's input."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInterface:
    """Any other model: tensors in, tensors out.

    Attributes:
        labels: Names of a classifier's classes, in the order of its logits; else empty.
        tokenizer: For clients that make the inputs from text; the runtime does not use it.
        max_batch: Size of the first dimension of every input and output, at most: requests may
            then share a run. 0 is a model whose dimensions have other meanings.
        max_sequence: Size of the inputs' second dimension, at most; None is no limit.
        padded: Texts of different lengths may share a run: the inputs' second dimension is
            filled up with zeros, which an attention mask among the inputs tells apart.
        states: What is carried through a sequence of requests; clients do not see it.
    """

    model: str
    tokenizer: str | None
    max_batch: int
    max_sequence: int | None
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    padded: bool = False
    states: tuple[StateSpec, ...] = ()
    kind: Literal["tensors"] = field(default="tensors", init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemInterface:
    """A system for boxes that run a device image: nothing that is served; see update/system.py.

    Attributes:
        model: What is started: its kernel image, called as the other kinds call their graph.
        image: Which image it is a version of: ``IMAGE_ID`` of its ``os-release``.
    """

    model: str
    image: str
    kind: Literal["system"] = field(default="system", init=False)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """None: it takes no tensors."""
        return ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """None: it gives no tensors."""
        return ()


Interface = (
    TextInterface | EmbeddingInterface | TensorInterface | AdapterInterface | SystemInterface
)


def read_interface(reader: Reader) -> Interface:
    """Read the manifest's table ``interface``.

    Raises:
        InvalidInputError: It is not of a known kind, or a value is wrong.
    """
    readers: dict[str, Callable[[Reader], Interface]]
    readers = {"text": _text, "embeddings": _embeddings, "tensors": _tensors, "adapter": _adapter}
    readers |= {"system": _system}
    kind = reader.string("kind")
    if kind not in readers:
        raise reader.fault("kind", f"is '{kind}'; this build knows {', '.join(readers)}")
    interface = readers[kind](reader)
    reader.end()
    return interface


def _text(reader: Reader) -> TextInterface:
    return TextInterface(
        model=reader.string("model"),
        tokenizer=reader.string("tokenizer"),
        chat_template=reader.optional("chat_template", reader.string),
        context_length=_positive(reader, "context_length"),
        end_tokens=tuple(reader.list_of("end_tokens", int)),
        special_tokens=reader.table("special_tokens").named(str),
        defaults=_defaults(reader.table("defaults")),
        adapters=reader.optional("adapters", lambda key: _support(reader.table(key))),
        token_table=reader.optional("token_table", lambda key: _token_table(reader.table(key))),
    )


def _token_table(reader: Reader) -> TokenTable:
    table = TokenTable(
        file=reader.string("file"),
        start=_natural(reader, "start"),
        tokens=_positive(reader, "tokens"),
        row_bytes=_positive(reader, "row_bytes"),
    )
    reader.end()
    return table


def _support(reader: Reader) -> AdapterSupport:
    linears = reader.table("linears").named_tables()
    support = AdapterSupport(
        model=reader.string("model"),
        rank=_positive(reader, "rank"),
        linears={name: _linear(table) for name, table in linears.items()},
    )
    reader.end()
    return support


def _linear(reader: Reader) -> LinearShape:
    shape = LinearShape(inputs=_positive(reader, "inputs"), outputs=_positive(reader, "outputs"))
    reader.end()
    return shape


def _adapter(reader: Reader) -> AdapterInterface:
    base = reader.string("base")
    if not _DIGEST.fullmatch(base):
        raise reader.fault("base", "must be 64 hexadecimal digits")
    return AdapterInterface(
        weights=reader.string("weights"),
        rank=_positive(reader, "rank"),
        base=base,
        base_name=reader.string("base_name"),
        chat_template=reader.optional("chat_template", reader.string),
        end_tokens=reader.optional("end_tokens", lambda key: tuple(reader.list_of(key, int))),
        defaults=reader.optional("defaults", lambda key: _defaults(reader.table(key))),
    )


def _system(reader: Reader) -> SystemInterface:
    return SystemInterface(model=reader.string("model"), image=reader.string("image"))


def _defaults(reader: Reader) -> GenerationDefaults:
    defaults = GenerationDefaults(
        temperature=reader.number("temperature"),
        top_p=reader.number("top_p"),
        top_k=reader.integer("top_k"),
        min_p=reader.number("min_p"),
        repetition_penalty=reader.number("repetition_penalty"),
    )
    reader.end()
    return defaults


def _embeddings(reader: Reader) -> EmbeddingInterface:
    return EmbeddingInterface(
        model=reader.string("model"),
        tokenizer=reader.string("tokenizer"),
        max_tokens=_positive(reader, "max_tokens"),
        max_batch=_positive(reader, "max_batch"),
        dimension=_positive(reader, "dimension"),
        inputs=_specs(reader, "inputs"),
        outputs=_specs(reader, "outputs"),
    )


def _tensors(reader: Reader) -> TensorInterface:
    interface = TensorInterface(
        model=reader.string("model"),
        tokenizer=reader.optional("tokenizer", reader.string),
        max_batch=_natural(reader, "max_batch"),
        max_sequence=reader.optional("max_sequence", lambda key: _positive(reader, key)),
        labels=tuple(reader.list_of("labels", str)),
        inputs=_specs(reader, "inputs"),
        outputs=_specs(reader, "outputs"),
        padded=reader.boolean("padded", default=False),
        states=tuple(_state(table) for table in reader.optional("states", reader.tables) or ()),
    )
    _check_batches(reader, interface)
    _check_states(reader, interface)
    return interface


def _state(reader: Reader) -> StateSpec:
    state = StateSpec(input=reader.string("input"), output=reader.string("output"))
    reader.end()
    return state


def _check_batches(reader: Reader, interface: TensorInterface) -> None:
    tensors = (*interface.inputs, *interface.outputs)
    if interface.max_batch and any(spec.shape[:1] != (None,) for spec in tensors):
        raise reader.fault("max_batch", "must be 0: not every tensor's first dimension is free")
    if interface.padded and not interface.max_batch:
        raise reader.fault("padded", "needs a max_batch")


def _check_states(reader: Reader, interface: TensorInterface) -> None:
    inputs = {spec.name: spec for spec in interface.inputs}
    outputs = {spec.name: spec for spec in interface.outputs}
    for state in interface.states:
        if state.input not in inputs or state.output not in outputs:
            raise reader.fault(
                "states", f"names '{state.input}' and '{state.output}': not both are"
            )
        if inputs[state.input].datatype != outputs[state.output].datatype:
            raise reader.fault("states", f"'{state.input}' has another datatype as an output")
    if interface.states and interface.max_batch:
        raise reader.fault("states", "are for models with a max_batch of 0")


def _specs(reader: Reader, key: str) -> tuple[TensorSpec, ...]:
    return tuple(_spec(table) for table in reader.tables(key))


def _spec(reader: Reader) -> TensorSpec:
    datatype = reader.string("datatype")
    if datatype not in NUMPY_TYPES:
        raise reader.fault("datatype", f"is '{datatype}'; known are {', '.join(NUMPY_TYPES)}")
    sizes = reader.list_of("shape", int)
    spec = TensorSpec(
        name=reader.string("name"),
        datatype=datatype,
        shape=tuple(None if size == -1 else size for size in sizes),
    )
    reader.end()
    return spec


def _natural(reader: Reader, key: str) -> int:
    value = reader.integer(key)
    if value < 0:
        raise reader.fault(key, "must not be negative")
    return value


def _positive(reader: Reader, key: str) -> int:
    value = reader.integer(key)
    if value < 1:
        raise reader.fault(key, "must be at least 1")
    return value
