#!/bin/sh
# Compiles classify.cpp beside itself, or to the path given, against the torch that `python` imports.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
torch=$("${PYTHON:-python}" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
"${CXX:-g++}" -std=c++20 -O1 "$here/classify.cpp" -o "${1:-$here/classify}" \
    -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
    -L "$torch/lib" -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10
