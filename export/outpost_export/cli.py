"""The command ``outpost-export``."""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from outpost_runtime.bundle import read_bundle, verify
from outpost_runtime.cli.ending import ended
from rich.console import Console

from outpost_export.publishing.cli import add_commands as add_publishing_commands

_DESCRIPTION = """\
Turn a fine-tuned checkpoint into a bundle that outpost serves, and prove what was built.
"""
_BUILD_HELP = """\
SOURCE is a folder that transformers' save_pretrained has written: safetensors weights,
config.json, tokenizer. Language models, sentence encoders and text classifiers are built.

Or SOURCE is an ONNX file, FILE.onnx, perhaps with weights in files beside it. It is shipped
as it is, so its target is cpu-fp32, and what it does is tensors in, tensors out. It must
answer the same inputs the same way whenever and however it is run. Inputs are made up for
its signature, or brought with --golden FILE: an .npz or .safetensors file of tensors named
CASE/INPUT, such as 0/image. A recipe names states, sizes and labels; see the documentation.

A build from a checkpoint is compared with it by running it in Outpost's own runtime. One
that is worse than its recipe allows is not written; the message says by how much.

A fine-tune can be quantized with the scales of an earlier bundle of the same model, from the
same recipe: with --on-grid-of BUNDLE most integers stay as they are, and an update from that
bundle is a fraction of its size. Weights beyond those scales are clipped and counted.
"""
_EXAMPLES = """\
examples:
  outpost-export build ./my-finetune --target cpu-int8 --out bundles/my-model
  outpost-export build ./base --adapter ./my-lora --target cpu-int8 --out bundles/my-model
  outpost-export build ./base --target cpu-int8 --adapter-rank 16 --out bundles/my-base
  outpost-export build ./next --target cpu-int8 --on-grid-of bundles/my-model --out bundles/next
  outpost-export build ./model.onnx --target cpu-fp32 --out bundles/my-detector
  outpost-export build-adapter ./my-lora --base bundles/my-base --source ./base --out bundles/mine
  outpost-export inspect bundles/my-model
"""
_BUILD_ADAPTER_HELP = """\
ADAPTER is a LoRA folder that PEFT's save_pretrained has written. Its bundle is served with
the bundle of its base, which was built with --adapter-rank: one base, many adapters, each
request with its own. An adapter for which there shall be one model only can be merged
instead; see 'outpost-export build --adapter'.

What the base's bundle and the adapter answer together is compared with the merged
checkpoint. The recipe gives name, version, licence and thresholds; the rest is the base's.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return ended("outpost-export", lambda: parsed.run(parsed))
    except KeyboardInterrupt:
        sys.stderr.write("outpost-export: stopped; nothing was written.\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="outpost-export", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_build(
        commands.add_parser(
            "build",
            help="build a bundle and measure it",
            description=_BUILD_HELP,
            epilog=_EXAMPLES,
            formatter_class=raw,
        )
    )
    _add_build_adapter(
        commands.add_parser(
            "build-adapter",
            help="build an adapter's bundle, to be served with its base",
            description=_BUILD_ADAPTER_HELP,
            formatter_class=raw,
        )
    )
    inspect = commands.add_parser("inspect", help="show a bundle and check its files")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    inspect.add_argument("--json", action="store_true", help="print JSON for programs")
    inspect.set_defaults(run=_inspect)
    add_publishing_commands(commands)
    return parser


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "source", type=Path, metavar="SOURCE", help="a checkpoint's folder, or FILE.onnx"
    )
    build.add_argument(
        "--target", required=True, help="cpu-fp32, cpu-int8 or cpu-int4; ONNX files: cpu-fp32"
    )
    build.add_argument("--task", help="what it does (default: read from its configuration)")
    build.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT LoRA folder to merge")
    build.add_argument(
        "--adapter-rank",
        type=int,
        metavar="N",
        help="let adapters of rank N at most be served with it (default: none)",
    )
    build.add_argument(
        "--golden", type=Path, metavar="FILE", help="inputs for an ONNX file (default: made up)"
    )
    build.add_argument(
        "--on-grid-of",
        type=Path,
        metavar="BUNDLE",
        help="keep the scales of this earlier bundle, so that an update from it is small",
    )
    _add_common(build)
    build.set_defaults(run=_build)


def _add_build_adapter(build: argparse.ArgumentParser) -> None:
    build.add_argument("adapter", type=Path, metavar="ADAPTER", help="a PEFT LoRA folder")
    build.add_argument(
        "--base", required=True, type=Path, metavar="BUNDLE", help="the bundle of its base"
    )
    build.add_argument(
        "--source",
        required=True,
        type=Path,
        metavar="DIR",
        help="the checkpoint that the base's bundle was built from",
    )
    _add_common(build)
    build.set_defaults(run=_build_adapter)


def _add_common(build: argparse.ArgumentParser) -> None:
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="the bundle's folder")
    build.add_argument("--name", help="name of the model (default: the name of DIR)")
    build.add_argument("--version", help="version of the model (default: 1)")
    build.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe in TOML")
    build.add_argument(
        "--eval",
        type=Path,
        metavar="FILE",
        help="a text to measure with, or dialogues (.jsonl); for encoders, one text per line",
    )
    build.add_argument(
        "--accept-worse",
        metavar="REASON",
        help="build even if a threshold is missed; the reason is recorded in the manifest",
    )


def _build(parsed: argparse.Namespace) -> int:
    _calm_libraries()
    from outpost_export.build import Order, build  # noqa: PLC0415 - takes seconds to import
    from outpost_export.inspect import summary  # noqa: PLC0415
    from outpost_export.progress import ConsoleReporter  # noqa: PLC0415
    from outpost_export.quiet import silence_libraries  # noqa: PLC0415
    from outpost_export.recipe import read_recipe  # noqa: PLC0415

    silence_libraries()
    out: Path = parsed.out.absolute()
    recipe = read_recipe(
        parsed.recipe,
        target=parsed.target,
        name=parsed.name,
        default_name=_name_of(out),
        task=parsed.task,
        version=parsed.version,
        adapter_rank=parsed.adapter_rank,
    )
    order = Order(
        source=parsed.source,
        adapter=parsed.adapter,
        recipe=recipe,
        out=out,
        evaluation=parsed.eval,
        accept_worse=parsed.accept_worse,
        golden=parsed.golden,
        on_grid_of=parsed.on_grid_of,
    )
    finished = build(order, ConsoleReporter(Console(stderr=True)))
    Console().print(summary(finished))
    return 0


def _build_adapter(parsed: argparse.Namespace) -> int:
    _calm_libraries()
    from outpost_export.adapter_build import AdapterOrder, build_adapter  # noqa: PLC0415
    from outpost_export.inspect import summary  # noqa: PLC0415
    from outpost_export.progress import ConsoleReporter  # noqa: PLC0415
    from outpost_export.quiet import silence_libraries  # noqa: PLC0415
    from outpost_export.recipe import read_recipe  # noqa: PLC0415

    silence_libraries()
    out: Path = parsed.out.absolute()
    recipe = read_recipe(
        parsed.recipe,
        target=read_bundle(parsed.base).manifest.target,
        name=parsed.name,
        default_name=_name_of(out),
        version=parsed.version,
    )
    order = AdapterOrder(
        adapter=parsed.adapter,
        base=parsed.base,
        source=parsed.source,
        recipe=recipe,
        out=out,
        evaluation=parsed.eval,
        accept_worse=parsed.accept_worse,
    )
    finished = build_adapter(order, ConsoleReporter(Console(stderr=True)))
    Console().print(summary(finished))
    return 0


def _calm_libraries() -> None:
    # They read these when they are imported; a build never reaches for the network.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _name_of(out: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", out.name.lower()).strip("-._")[:63]


def _inspect(parsed: argparse.Namespace) -> int:
    from outpost_export.inspect import as_document, as_table  # noqa: PLC0415 - only here

    bundle = read_bundle(parsed.bundle)
    verify(bundle)
    if parsed.json:
        sys.stdout.write(json.dumps(as_document(bundle), indent=2) + "\n")
    else:
        Console().print(as_table(bundle))
    return 0
