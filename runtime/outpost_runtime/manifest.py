"""The manifest of a bundle: what it is, what is in it, what was measured.

``manifest.json`` is the one document that is signed; everything else in a bundle
hangs on it by digest. Its schema is documented in ``docs/bundle-format.md``.
Rules, kept by the ``from_reader`` functions here:

1. Unknown keys are errors: a device never ignores what it does not understand.
2. File names are plain relative paths, so that a bundle cannot write outside its folder.
3. Every file that the interface or the evidence names is listed with its digest.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.tensors import NUMPY_TYPES, TensorSpec

FORMAT = "outpost-bundle/1"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a bundle: bytes and SHA-256 (hexadecimal)."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """What a text request gets that sets nothing; see ``outpost.v1.GenerationParameters``."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInterface:
    """A decoder: text in, text out.

    Attributes:
        context_length: Tokens of prompt and answer together, at most.
        end_tokens: Ids that end an answer.
        chat_template: A Jinja file, or None for a model that only completes text.
    """

    model: str
    tokenizer: str
    chat_template: str | None
    context_length: int
    end_tokens: tuple[int, ...]
    special_tokens: dict[str, str]
    defaults: GenerationDefaults
    kind: Literal["text"] = field(default="text", init=False)


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
class TensorInterface:
    """Any other model: tensors in, tensors out.

    Attributes:
        labels: Names of a classifier's classes, in the order of its logits; else empty.
        tokenizer: For clients that make the inputs from text; the runtime does not use it.
        max_batch: Size of the inputs' first dimension, at most.
        max_sequence: Size of their second dimension, at most.
    """

    model: str
    tokenizer: str | None
    max_batch: int
    max_sequence: int
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: Literal["tensors"] = field(default="tensors", init=False)


Interface = TextInterface | EmbeddingInterface | TensorInterface


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was measured when the bundle was built, and how a device can measure again.

    Attributes:
        figures: What was measured, by name.
        thresholds: What was demanded, by name.
        accepted_worse: Why a missed threshold was accepted, or None.
        golden: A safetensors file with inputs and expected outputs.
        tolerances: How far a device may be off when it runs ``golden``.
    """

    figures: dict[str, float]
    thresholds: dict[str, float]
    accepted_worse: str | None
    golden: str
    tolerances: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a bundle comes from; digests are SHA-256.

    Attributes:
        source: Digests of the source's files by name.
        adapter: The same for the adapter that was merged, or empty.
        recipe_sha256: Digest of the recipe's canonical JSON.
        evaluation_sha256: Digest of the text or texts that the figures were measured on.
        versions: Versions of the libraries that took part.
    """

    source: dict[str, str]
    adapter: dict[str, str]
    recipe: dict[str, Any]
    recipe_sha256: str
    evaluation_sha256: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A bundle's description; ``digest`` of its bytes is the bundle's identity.

    Attributes:
        task: A task of Hugging Face's naming, such as ``text-generation``.
        memory_bytes: What an opened model is expected to need, for one sequence.
    """

    name: str
    version: str
    task: str
    target: str
    files: dict[str, FileEntry]
    interface: Interface
    memory_bytes: int
    evidence: Evidence
    licence: str
    provenance: Provenance


def bundle_digest(data: bytes) -> str:
    """Return the identity of the bundle whose manifest has these bytes: its SHA-256."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of a ``manifest.json``.

    Raises:
        BundleError: They are no manifest of the format that this build knows.
    """
    try:
        reader = parse_json_object(data, path=MANIFEST_NAME)
        found = reader.string("format")
        if found != FORMAT:
            raise reader.fault("format", f"is '{found}'; this build reads '{FORMAT}'")
        return _manifest(reader)
    except InvalidInputError as error:
        raise BundleError(error.message, hint="Build the bundle again.") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes of a manifest: equal manifests have equal digests."""
    interface = _plain(manifest.interface)
    document = {"format": FORMAT, **_plain(manifest), "interface": interface}
    return canonical_json(document)


def _manifest(reader: Reader) -> Manifest:
    manifest = Manifest(
        name=_matching(reader, "name", _NAME, "must be lower-case letters, digits, '.', '_', '-'"),
        version=_matching(reader, "version", _NAME, "must be letters, digits, '.', '_', '-'"),
        task=reader.string("task"),
        target=reader.string("target"),
        files=_files(reader.table("files")),
        interface=_interface(reader.table("interface")),
        memory_bytes=reader.integer("memory_bytes"),
        evidence=_evidence(reader.table("evidence")),
        licence=reader.string("licence"),
        provenance=_provenance(reader.table("provenance")),
    )
    reader.end()
    _check_named_files(reader, manifest)
    return manifest


def _matching(reader: Reader, key: str, pattern: re.Pattern[str], problem: str) -> str:
    value = reader.string(key)
    if not pattern.fullmatch(value):
        raise reader.fault(key, problem)
    return value


def _files(reader: Reader) -> dict[str, FileEntry]:
    entries = {}
    for name, table in reader.named_tables().items():
        if not _PATH.fullmatch(name) or name == MANIFEST_NAME:
            raise reader.fault(name, "is not an allowed file name")
        digest = _matching(table, "sha256", _DIGEST, "must be 64 hexadecimal digits")
        entry = FileEntry(size=table.integer("size"), sha256=digest)
        if entry.size < 0:
            raise table.fault("size", "must not be negative")
        table.end()
        entries[name] = entry
    return entries


def _interface(reader: Reader) -> Interface:
    readers: dict[str, Callable[[Reader], Interface]]
    readers = {"text": _text, "embeddings": _embeddings, "tensors": _tensors}
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
    )


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
    return TensorInterface(
        model=reader.string("model"),
        tokenizer=reader.optional("tokenizer", reader.string),
        max_batch=_positive(reader, "max_batch"),
        max_sequence=_positive(reader, "max_sequence"),
        labels=tuple(reader.list_of("labels", str)),
        inputs=_specs(reader, "inputs"),
        outputs=_specs(reader, "outputs"),
    )


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


def _evidence(reader: Reader) -> Evidence:
    evidence = Evidence(
        figures=_numbers(reader.table("figures")),
        thresholds=_numbers(reader.table("thresholds")),
        accepted_worse=reader.optional("accepted_worse", reader.string),
        golden=reader.string("golden"),
        tolerances=_numbers(reader.table("tolerances")),
    )
    reader.end()
    return evidence


def _numbers(reader: Reader) -> dict[str, float]:
    return reader.numbers()


def _provenance(reader: Reader) -> Provenance:
    provenance = Provenance(
        source=reader.table("source").named(str),
        adapter=reader.table("adapter").named(str),
        recipe=reader.table("recipe").raw(),
        recipe_sha256=reader.string("recipe_sha256"),
        evaluation_sha256=reader.string("evaluation_sha256"),
        versions=reader.table("versions").named(str),
    )
    reader.end()
    return provenance


def _positive(reader: Reader, key: str) -> int:
    value = reader.integer(key)
    if value < 1:
        raise reader.fault(key, "must be at least 1")
    return value


def _check_named_files(reader: Reader, manifest: Manifest) -> None:
    interface = manifest.interface
    named = [interface.model, interface.tokenizer, manifest.evidence.golden]
    if isinstance(interface, TextInterface):
        named.append(interface.chat_template)
    for name in named:
        if name is not None and name not in manifest.files:
            raise reader.fault("files", f"does not list '{name}', which the manifest names")


def _plain(value: Any) -> Any:
    if isinstance(value, TensorSpec):
        shape = [-1 if size is None else size for size in value.shape]
        return {"name": value.name, "datatype": value.datatype, "shape": shape}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
