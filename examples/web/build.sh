#!/bin/sh
# Make a static site that classifies images by a file that takes raw images:
#
#     cnndeploy export lenet.pt --format onnx --input image
#     examples/web/build.sh lenet.onnx site
#     python examples/web/serve.py site
set -eu
model=$(realpath "$1") site=$(realpath -m "$2") here=$(realpath "$(dirname "$0")")
mkdir -p "$site"
${CNNDEPLOY:-cnndeploy} inspect "$model" --json > "$site/model.json"
cp "$model" "$site/model.onnx"
cd "$here"
npm install --ignore-scripts --no-package-lock --no-audit --no-fund --silent
cd node_modules/onnxruntime-web/dist
cp ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm "$site"
cp "$here/index.html" "$here/style.css" "$here/app.mjs" "$site"
