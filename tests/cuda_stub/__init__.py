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
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_SOURCES = {
    "libcuda.so.1": "driver.c",
    "libcudart.so.13": "runtime.c",
    "libcublas.so.13": "blas.c",
    "libcublasLt.so.13": "blas.c",
    "libcurand.so.10": "",
    "libcudnn.so.9": "cudnn.c",
}
# The libraries that nvidia's packages brought stay out of it.
_START = "import cnndeploy.runtimes.onnxruntime as runtime\nruntime.load_libraries = lambda: ''\n"


def build(folder: Path) -> None:
    """Compile the libraries into ``folder``; skip the test if this machine cannot."""
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        pytest.skip(f"no {missing[0]} on this machine; gcc and binutils would run it")
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
    for library, source in _SOURCES.items():
        names = [name for name, where in functions if where == library]
        code = "".join(f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in names)
        script = folder / f"{library}.map"
        script.write_text(f"{library} {{ global: *; }};")
        versioned = [f"-Wl,--version-script={script}"] if names else []
        sources = [str(_HERE / source)] if source else []
        command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", *versioned, *sources]
        subprocess.run([*command, "-xc", "-", "-o", folder / library], input=code, text=True, check=True)


def python(folder: Path, code: str, *, gpus: int = 1, cudnn: bool = True) -> tuple[str, list[str]]:
    """Run Python on a machine with GPUs; return what it prints, errors too, and the calls of CUDA that were noted."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    without = folder / "without"
    without.mkdir(exist_ok=True)
    loaded = [str(folder / library) for library in _SOURCES if library != "libcudnn.so.9"]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(loaded),
        "LD_LIBRARY_PATH": str(folder if cudnn else without),
        "CUDA_STUB_GPUS": str(gpus),
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
