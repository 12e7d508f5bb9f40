"""A GPU that is not there: libraries under which the unchanged onnxruntime-gpu believes in one.

The CUDA provider names the functions that it calls. Here each of them does nothing and returns 0, success; the files
in C have those that must do more. So what is decided on the host is real: which GPUs are tried, where nodes are placed,
what cuDNN is asked for, and errors. What is computed is garbage.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
CUDNN, NVML = "libcudnn.so.9", "libnvidia-ml.so.1"
_SOURCES = {
    "libcuda.so.1": "driver.c",
    "libcudart.so.13": "runtime.c",
    "libcublas.so.13": "blas.c",
    "libcublasLt.so.13": "blas.c",
    "libcurand.so.10": "",
    CUDNN: "cudnn.c",
    NVML: "nvml.c",
}
# The libraries that nvidia's packages brought stay out of it, in worker processes too.
_SITE = "import onnxruntime\nonnxruntime.preload_dlls = lambda **_: None\n"
_START = "import cnndeploy.runtimes.onnxruntime as runtime\n"


def build(folder: Path) -> None:
    """Compile the libraries into ``folder``; skip the test if this machine cannot."""
    if shutil.which("nm") is None:
        pytest.skip("no nm on this machine; binutils would run it")
    package = importlib.util.find_spec("onnxruntime")
    provider = Path(str(package and package.origin)).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.exists():
        pytest.skip("the installed onnxruntime is built without CUDA; onnxruntime-gpu would run it")
    needs = subprocess.run(
        [str(shutil.which("nm")), "-D", "--undefined-only", "--with-symbol-versions", provider],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.findall(r" U (\w+)@(libcu\w+\.so\.\d+)", needs)
    if unknown := {library for _, library in functions} - _SOURCES.keys():
        pytest.skip(
            f"this onnxruntime is of another CUDA, with {', '.join(sorted(unknown))}; 13 would run it"
        )
    for library in _SOURCES:
        build_one(folder, library, [name for name, where in functions if where == library])
    (folder / "sitecustomize.py").write_text(_SITE)


def build_one(folder: Path, library: str, names: Sequence[str] = ()) -> None:
    """Compile one library, with functions of these ``names`` besides its own; skip the test if gcc is missing."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine; gcc would run it")
    code = "".join(f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in names)
    script = folder / f"{library}.map"
    script.write_text(f"{library} {{ global: *; }};")
    versioned = [f"-Wl,--version-script={script}"] if names else []
    sources = [str(_HERE / _SOURCES[library])] if _SOURCES[library] else []
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", *versioned, *sources]
    subprocess.run([*command, "-xc", "-", "-o", folder / library], input=code, text=True, check=True)


def python(
    folder: Path, code: str, *, gpus: int = 1, missing: str = "", nvml: str = ""
) -> tuple[str, list[str]]:
    """Run Python on a machine with GPUs; return what it prints, errors too, and the calls of CUDA that were noted.

    A library may be ``missing``; ``nvml`` says what is unusual about the management library.
    """
    log = folder / "log"
    log.unlink(missing_ok=True)
    without = folder / "without"
    without.mkdir(exist_ok=True)
    loaded = [str(folder / library) for library in _SOURCES if library not in (CUDNN, missing)]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(loaded),
        "LD_LIBRARY_PATH": str(without if missing else folder),
        "PYTHONPATH": str(folder),
        "CUDA_STUB_GPUS": str(gpus),
        "CUDA_STUB_NVML": nvml,
        "CUDA_STUB_LOG": str(log),
    }
    process = subprocess.run(
        [sys.executable, "-c", _START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
        timeout=30,
    )
    return process.stdout, log.read_text().splitlines() if log.exists() else []
