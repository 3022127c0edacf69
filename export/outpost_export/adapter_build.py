"""From a LoRA adapter to a bundle that a device serves beside its base's other adapters.

1. Check base bundle, the checkpoint it was built from, and the adapter.
2. Write A and B, and what else the adapter brings, into a hidden folder.
3. Merge the adapter with transformers and PEFT; measure what the base's graph and the
   adapter compute together against that, through the runtime.
4. Pass the gate; write golden file and manifest; run the golden inputs as a device
   would; rename the folder. A failure leaves nothing under the final name.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.numpy
import transformers
from outpost_runtime import golden
from outpost_runtime.bundle import FolderBundle, read_bundle, verify
from outpost_runtime.interface import AdapterInterface, AdapterSupport, TextInterface
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank, Weights
from outpost_runtime.tokenizer import Tokenizer

from outpost_export import adapter as lora
from outpost_export import decoder_evidence as evidence
from outpost_export.adapter_weights import check_servable, weights_of
from outpost_export.decoder_build import TOLERANCES, fit_of, open_decoder, open_graph
from outpost_export.errors import RecipeError, SourceError
from outpost_export.evaluation import Text, evaluation_for, read_text
from outpost_export.finish import Origin, check_output, finish, hidden_folder, publish
from outpost_export.progress import Reporter
from outpost_export.recipe import DECODER_TASK, Recipe
from outpost_export.result import Built, Finished
from outpost_export.source import (
    Source,
    check_adapter,
    digests_of,
    licence_of,
    load_model,
    load_tokenizer,
    read_source,
)
from outpost_export.text_interface import checked_template, text_interface

_WEIGHTS = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterOrder:
    """What a user asks for.

    Attributes:
        adapter: A LoRA folder.
        base: The bundle of its base, built for adapters.
        source: The checkpoint that this bundle was built from.
        recipe: Name, version, licence and thresholds count; the rest is the base's.
        evaluation: A text or dialogues, or None: the built-in text.
        accept_worse: Why a missed threshold is acceptable, or None.
    """

    adapter: Path
    base: Path
    source: Path
    recipe: Recipe
    out: Path
    evaluation: Path | None
    accept_worse: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    bundle: FolderBundle
    interface: TextInterface
    support: AdapterSupport


def build_adapter(order: AdapterOrder, reporter: Reporter) -> Finished:
    """Build an adapter's bundle.

    Raises:
        BundleError: The base is damaged.
        SourceError: The base takes no adapters, the checkpoint is another, or the adapter
            cannot be served beside others.
        RecipeError: The recipe or an option is wrong.
        ConversionError: A library failed on the adapter.
        EvidenceError: The build is worse than the recipe allows.
    """
    check_output(order.out, order.accept_worse)
    base = _base(order.base)
    source = _source(order.source, base.bundle)
    check_adapter(order.adapter)
    check_servable(order.adapter)
    recipe = _recipe(order, base, source)
    text = read_text(order.evaluation, decoder=True)
    adapter = digests_of(order.adapter)
    origin = Origin(source=source.digests, adapter=adapter, measured_on=text.text.encode())
    with hidden_folder(order.out) as folder:
        with reporter.step("Merging the adapter"):
            tuned = lora.load_tuned(source, order.adapter)
            weights = weights_of(tuned, base.support)
            merged = folder / ".merged"
            merged.mkdir()
            lora.save_merged(tuned, source, order.adapter, merged)
            del tuned
        out = folder / "bundle"
        out.mkdir()
        checkpoint = read_source(merged, task=DECODER_TASK)
        built = _build(checkpoint, base, weights, recipe, text, out, reporter)
        bundle = finish(out, built, recipe, origin, order.accept_worse)
        with reporter.step("Opening the bundle as a device would"):
            golden.check_adapter(bundle, base.bundle)
        return Finished(
            bundle=publish(bundle, order.out), tokens_per_second=built.tokens_per_second
        )


def _base(folder: Path) -> _Base:
    bundle = read_bundle(folder)
    verify(bundle)
    interface = bundle.manifest.interface
    if not isinstance(interface, TextInterface) or interface.adapters is None:
        raise SourceError(
            f"The bundle '{bundle.manifest.name}' was built without a graph for adapters.",
            hint="Build it again with --adapter-rank, or merge the adapter with --adapter.",
        )
    if bundle.manifest.provenance.adapter:
        raise SourceError(
            f"The bundle '{bundle.manifest.name}' has an adapter merged into it.",
            hint="Build the base from its checkpoint alone.",
        )
    return _Base(bundle=bundle, interface=interface, support=interface.adapters)


def _source(folder: Path, base: FolderBundle) -> Source:
    source = read_source(folder, task=DECODER_TASK)
    if source.digests != base.manifest.provenance.source:
        raise SourceError(
            f"{folder} is not the checkpoint that '{base.manifest.name}' was built from.",
            hint="Name that checkpoint with --source.",
        )
    return source


def _recipe(order: AdapterOrder, base: _Base, source: Source) -> Recipe:
    manifest = base.bundle.manifest
    if order.recipe.name == manifest.name:
        raise RecipeError(
            f"The adapter cannot have the name of its base, '{manifest.name}'.",
            hint="Choose another with --name.",
        )
    keys = ("scales", "block_size", "head")
    scales, block_size, head = map(manifest.provenance.recipe.get, keys)
    recipe = replace(
        order.recipe,
        target=manifest.target,
        task=DECODER_TASK,
        context_length=base.interface.context_length,
        scales=scales if isinstance(scales, str) else order.recipe.scales,
        block_size=block_size if isinstance(block_size, int) else order.recipe.block_size,
        head=head if isinstance(head, str) else None,
        adapter_rank=base.support.rank,
    )
    of_adapter = licence_of(order.adapter)
    licence = source.licence if of_adapter == "unknown" else of_adapter
    return recipe.with_defaults(task=DECODER_TASK, licence=licence)


def _build(
    merged: Source,
    base: _Base,
    weights: Weights,
    recipe: Recipe,
    text: Text,
    out: Path,
    reporter: Reporter,
) -> Built:
    tokenizer = load_tokenizer(merged.folder)
    effective = text_interface(merged, recipe, tokenizer, out)
    as_served = replace(effective, special_tokens=base.interface.special_tokens)
    template = checked_template(as_served, tokenizer, out)
    interface = _interface(effective, base, weights, out)
    ours = Tokenizer(base.bundle.read(base.interface.tokenizer))
    fit = fit_of(merged, effective.context_length)
    evaluation = evaluation_for(text, tokenizer, ours, template, fit)

    model = load_model(merged.folder, transformers.AutoModelForCausalLM)
    wanted = evidence.reference(model, evaluation, effective.end_tokens, reporter)
    del model

    bank = AdapterBank(base.support, base=base.bundle.digest, capacity=1)
    bank.check(weights)
    graph = open_graph(base.bundle.path(base.support.model), base.interface.token_table)
    session = AdapterSession(graph, bank, everywhere=bank.put(weights))
    decoder = open_decoder(session, effective.context_length)
    measured = evidence.measure(decoder, wanted, evaluation, effective.end_tokens, reporter)
    session.close()
    safetensors.numpy.save_file(dict(weights), out / _WEIGHTS)
    return Built(
        interface=interface,
        figures=measured.figures,
        golden=measured.golden,
        tolerances=TOLERANCES,
        memory_bytes=bank.bytes_per_adapter,
        tokens_per_second=measured.tokens_per_second,
    )


def _interface(
    effective: TextInterface, base: _Base, weights: Weights, out: Path
) -> AdapterInterface:
    """Keep of what the merged checkpoint says only what the base does not say.

    Raises:
        SourceError: The adapter brings a tokenizer of its own.
    """
    of_base = base.interface
    tokenizer = out / effective.tokenizer
    if _spelling(tokenizer) != _spelling(base.bundle.path(of_base.tokenizer)):
        raise SourceError(
            "The adapter brings another tokenizer than its base's, which cannot be served "
            "beside other adapters.",
            hint="Merge it: outpost-export build BASE --adapter ADAPTER.",
        )
    tokenizer.unlink()
    return AdapterInterface(
        weights=_WEIGHTS,
        rank=max(len(array) for name, array in weights.items() if name.endswith(".lora_A")),
        base=base.bundle.digest,
        base_name=base.bundle.manifest.name,
        chat_template=_own_template(effective, base, out),
        end_tokens=None if effective.end_tokens == of_base.end_tokens else effective.end_tokens,
        defaults=None if effective.defaults == of_base.defaults else effective.defaults,
    )


def _spelling(tokenizer: Path) -> dict[str, Any]:
    # How a trainer has padded and cut its batches stays in the file and says nothing about text.
    document: dict[str, Any] = json.loads(tokenizer.read_text("utf-8"))
    return document | {"padding": None, "truncation": None}


def _own_template(effective: TextInterface, base: _Base, out: Path) -> str | None:
    if effective.chat_template is None:
        return None
    written = out / effective.chat_template
    of_base = base.interface.chat_template
    if of_base is None or base.bundle.path(of_base).read_bytes() != written.read_bytes():
        return effective.chat_template
    written.unlink()
    return None
