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
from dataclasses import dataclass
from typing import Any

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import (
    AdapterInterface,
    Interface,
    SystemInterface,
    TextInterface,
    read_interface,
)
from outpost_runtime.tensors import TensorSpec

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
class Evidence:
    """What was measured when the bundle was built, and how a device can measure again.

    Attributes:
        figures: What was measured, by name.
        thresholds: What was demanded, by name.
        accepted_worse: Why a missed threshold was accepted, or None.
        golden: A safetensors file with inputs and expected outputs; empty for a system, whose gate
            is the box's next start.
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
        adapter: The same for the adapter that was merged, or that this is; or empty.
        recipe_sha256: Digest of the recipe's canonical JSON.
        evaluation_sha256: Digest of the text or texts that the figures were measured on.
        versions: Versions of the libraries that took part.
        grid_of: Digest of the bundle whose scales it was quantized with; None: it has its own.
    """

    source: dict[str, str]
    adapter: dict[str, str]
    recipe: dict[str, Any]
    recipe_sha256: str
    evaluation_sha256: str
    versions: dict[str, str]
    grid_of: str | None = None


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


def is_system(manifest: Manifest) -> bool:
    """Say whether a bundle is a system for boxes, which no server opens."""
    return isinstance(manifest.interface, SystemInterface)


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
    # Absent and not null: runtimes that do not know these keys read the rest.
    if manifest.provenance.grid_of is None:
        del document["provenance"]["grid_of"]
    if isinstance(manifest.interface, TextInterface) and manifest.interface.token_table is None:
        del interface["token_table"]
    return canonical_json(document)


def _manifest(reader: Reader) -> Manifest:
    manifest = Manifest(
        name=_matching(reader, "name", _NAME, "must be lower-case letters, digits, '.', '_', '-'"),
        version=_matching(reader, "version", _NAME, "must be letters, digits, '.', '_', '-'"),
        task=reader.string("task"),
        target=reader.string("target"),
        files=_files(reader.table("files")),
        interface=read_interface(reader.table("interface")),
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


def _digest(reader: Reader, key: str) -> str:
    return _matching(reader, key, _DIGEST, "must be 64 hexadecimal digits")


def _files(reader: Reader) -> dict[str, FileEntry]:
    entries = {}
    for name, table in reader.named_tables().items():
        if not _PATH.fullmatch(name) or name == MANIFEST_NAME:
            raise reader.fault(name, "is not an allowed file name")
        entry = FileEntry(size=table.integer("size"), sha256=_digest(table, "sha256"))
        if entry.size < 0:
            raise table.fault("size", "must not be negative")
        table.end()
        entries[name] = entry
    return entries


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
        grid_of=reader.optional("grid_of", lambda key: _digest(reader, key)),
    )
    reader.end()
    return provenance


def _check_named_files(reader: Reader, manifest: Manifest) -> None:
    interface, golden = manifest.interface, manifest.evidence.golden
    measured = () if is_system(manifest) and not golden else (golden,)
    for name in (*measured, *_named_files(interface)):
        if name is not None and name not in manifest.files:
            raise reader.fault("files", f"does not list '{name}', which the manifest names")
    table = interface.token_table if isinstance(interface, TextInterface) else None
    if table is not None and table.end > manifest.files[table.file].size:
        raise reader.fault("files", f"say that {table.file} ends before its token_table does")


def _named_files(interface: Interface) -> tuple[str | None, ...]:
    if isinstance(interface, SystemInterface):
        return (interface.model,)
    if isinstance(interface, AdapterInterface):
        return interface.weights, interface.chat_template
    named = interface.model, interface.tokenizer
    if not isinstance(interface, TextInterface):
        return named
    second = None if interface.adapters is None else interface.adapters.model
    table = None if interface.token_table is None else interface.token_table.file
    return *named, interface.chat_template, second, table


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
