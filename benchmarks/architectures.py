"""How fast is every architecture on every runtime here? The tables of docs/BENCHMARKS.md.

A network without a checkpoint in the folder is measured with untrained weights, which take as long.

    .venv/bin/python benchmarks/architectures.py --folder checkpoints
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.benchmark.bench import bench
from cnndeploy.display.benchmark_tables import benchmark_markdown
from cnndeploy.exporters import export
from cnndeploy.files import write_file
from cnndeploy.serial import dumps
from cnndeploy.training.train import train

RUNTIMES = ("eager", "compiled", "torchscript", "raw-onnxruntime", "onnxruntime", "openvino")
ON_CUDA = frozenset(["eager", "compiled", "torchscript", "onnxruntime"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Every architecture on every runtime.")
    parser.add_argument("--folder", type=Path, help="with checkpoints, as lenet.pt; reports are written here")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each candidate (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES.names())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for name in arguments.architectures:
            checkpoint = folder / f"{name}.pt"
            if not checkpoint.exists():
                train(name, checkpoint, epochs=0)
            files = [checkpoint, *(export(checkpoint, kind).path for kind in ("torchscript", "onnx"))]
            runtimes = [each for each in RUNTIMES if arguments.device == "cpu" or each in ON_CUDA]
            report = bench(files, runtimes=runtimes, seconds=arguments.seconds, device=arguments.device)
            write_file(folder / f"{name}.json", dumps(report.to_dict()).encode())
            command = f"cnndeploy bench {' '.join(file.name for file in files)}"
            print(f"\n### {name}\n\n`{command} {' '.join(f'--runtime {runtime}' for runtime in runtimes)}`\n")
            print(benchmark_markdown(report), flush=True)


if __name__ == "__main__":
    main()
