"""A bundle, shown to people and to programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from outpost_runtime.bundle import Bundle
from outpost_runtime.interface import AdapterInterface, EmbeddingInterface, TextInterface
from rich.table import Table
from rich.text import Text

from outpost_export.result import Finished

_KILO = 1000
_SHOWN = {
    "perplexity_source": "perplexity before",
    "perplexity": "after",
    "top1_agreement": "top-1 agreement",
    "greedy_tokens": "greedy tokens",
    "cosine": "worst cosine",
    "label_agreement": "label agreement",
    "max_difference": "max difference",
    "relative_difference": "relative",
    "evaluated_inputs": "inputs",
}


def as_document(bundle: Bundle) -> dict[str, Any]:
    """Return everything that a manifest says, with the bundle's digest and size."""
    return {"digest": bundle.digest, "size": bundle.size, **asdict(bundle.manifest)}


def as_table(bundle: Bundle) -> Table:
    """Return what a person wants to know first."""
    manifest = bundle.manifest
    table = Table(title=f"{manifest.name} {manifest.version}", show_header=False)
    rows = {
        "task": manifest.task,
        "target": manifest.target,
        "interface": _interface(bundle),
        "size": in_units(bundle.size),
        "memory": in_units(manifest.memory_bytes),
        "licence": manifest.licence,
        "digest": bundle.digest,
        **{f"evidence: {name}": f"{value:g}" for name, value in manifest.evidence.figures.items()},
        **{
            f"demanded: {name}": f"{value:g}"
            for name, value in manifest.evidence.thresholds.items()
        },
    }
    if manifest.provenance.grid_of is not None:
        rows["on the grid of"] = manifest.provenance.grid_of
    if manifest.evidence.accepted_worse is not None:
        rows["accepted although worse"] = manifest.evidence.accepted_worse
    for name, entry in manifest.files.items():
        rows[f"file: {name}"] = f"{in_units(entry.size)}, sha256 {entry.sha256[:16]}…"
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))  # brackets in them are no markup
    return table


def summary(finished: Finished) -> Table:
    """Return the short table at the end of a build."""
    bundle = finished.bundle
    figures = bundle.manifest.evidence.figures
    table = Table(title=f"{bundle.manifest.name} {bundle.manifest.version} is built")
    shown = [name for name in _SHOWN if name in figures]
    for column in ("target", "size", *(_SHOWN[name] for name in shown)):
        table.add_column(column, justify="right")
    cells = [f"{figures[name]:.5g}" for name in shown]
    table.add_row(bundle.manifest.target, in_units(bundle.size), *cells)
    notes = [*finished.notes, *_on_its_grid(figures)]
    if finished.tokens_per_second is not None:
        notes.append(f"one stream, this machine: {finished.tokens_per_second:.0f} tokens/s")
    table.caption = Text("\n".join(notes)) if notes else None
    return table


def in_units(size: float) -> str:
    """Return a number of bytes as people write it."""
    for unit in ("B", "kB", "MB"):
        if size < _KILO:
            return f"{size:.3g} {unit}"
        size /= _KILO
    return f"{size:.3g} GB"


def _on_its_grid(figures: dict[str, float]) -> Iterator[str]:
    if weights := figures.get("quantized_weights"):
        changed, clipped = (figures[f"{what}_weights"] / weights for what in ("changed", "clipped"))
        said = f"{changed:.2%} of the integers changed, {clipped:.2%} clipped"
        yield f"on its predecessor's grid: {said}"


def _interface(bundle: Bundle) -> str:
    interface = bundle.manifest.interface
    if isinstance(interface, TextInterface):
        chat = "chat and text" if interface.chat_template else "text"
        context = f"{chat}, {interface.context_length} tokens of context"
        if interface.adapters is None:
            return context
        return f"{context}, adapters up to rank {interface.adapters.rank}"
    if isinstance(interface, AdapterInterface):
        return f"adapter of {interface.base_name} {interface.base[:16]}…, rank {interface.rank}"
    if isinstance(interface, EmbeddingInterface):
        return f"{interface.dimension} dimensions, {interface.max_tokens} tokens"
    return "; ".join(str(spec) for spec in (*interface.inputs, *interface.outputs))
