#!/bin/sh
# Make a static site that classifies images by a file that takes raw images:
#
#     cnndeploy export lenet.pt --format onnx --input image
#     examples/web/build.sh lenet.onnx site
#     python examples/web/serve.py site
set -eu
if [ $# -ne 2 ]; then
    echo "usage: build.sh MODEL.onnx SITE" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$2"
site=$(cd "$2" && pwd)
"${CNNDEPLOY:-cnndeploy}" inspect "$1" --json > "$site/model.json.new" || { rm "$site/model.json.new"; exit 1; }
cp "$1" "$site/model.onnx"
mv "$site/model.json.new" "$site/model.json"
cp "$here/index.html" "$here/style.css" "$here/app.js" "$site"
cd "$here"
npm install --ignore-scripts --no-package-lock --no-audit --no-fund --silent
cd node_modules/onnxruntime-web/dist
cp ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm "$site"
