#!/bin/sh
# Compile classify.cpp beside itself, or to the given path, with the torch that `python`, or $PYTHON, imports.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
torch=$("${PYTHON:-python}" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent)') || {
    echo "Error: this python has no torch; activate an environment that has it, or set PYTHON to its python" >&2
    exit 1
}
"${CXX:-g++}" -std=c++20 -O1 "$here/classify.cpp" -o "${1:-$here/classify}" \
    -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
    -L "$torch/lib" -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10
