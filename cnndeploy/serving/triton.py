"""A model repository: a folder that NVIDIA Triton, KServe and OpenVINO Model Server serve.

Sources: Triton's "Model Repository" and "Model Configuration", and for threads and OpenVINO the README of its ONNX
Runtime backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.certificate import certificate_path, read_certificates
from cnndeploy.deployment import ArtifactLike, Candidate, resolve
from cnndeploy.errors import ArtifactError, ServingError
from cnndeploy.files import make_folder, write_file
from cnndeploy.run import Run
from cnndeploy.serving.kserve import inference_service, known_address
from cnndeploy.serving.model import DATATYPES, check_name, protocol_shape
from cnndeploy.specs import TensorSpec

CONFIG, LABELS, FILE = "config.pbtxt", "labels.txt", "model.onnx"
_DELAY_US = 100  # that a request on a GPU waits for others to share its batch


def write_repository(
    model: ArtifactLike,
    folder: str | os.PathLike[str],
    *,
    name: str = "",
    max_batch: int = 64,
    run: Run | None = None,
) -> Path:
    """Write ``folder/NAME`` with a model, its certificate, its labels and ``config.pbtxt``; return its path.

    It writes ``folder/NAME.yaml`` too, for KServe. A model that is there already is replaced. ONNX Runtime runs it,
    whatever runtime is planned, with the planned device and number of threads. If no number were set, Triton would give
    each model one thread for every core of the machine.

    Args:
        model: An ONNX file, or a folder that ``cnndeploy tune`` wrote, whose plan is kept.
        folder: The repository; it may hold other models.
        name: By which clients ask for it; the file's name without its suffix by default.
        max_batch: The most images in a request, and on a GPU in a batch of several requests.
        run: How it is run; what this leaves open is as planned, or the default.

    Raises:
        ServingError: The model is no ONNX file, its name is not valid, or the folder holds files in the places of these
            that cnndeploy did not write.
        ArtifactError: The model cannot be read, or the folder not written.
    """
    candidate = resolve(model, run)
    artifact = candidate.artifact
    if artifact.format != "onnx":
        raise ServingError(f"{artifact.path} is {artifact.kind}; Triton gets ONNX files: export it first")
    if max_batch < 1:
        raise ServingError(f"a batch has at least one image, and not {max_batch}")
    name = name or (candidate.folder or artifact.path).resolve().stem
    check_name(name)
    target = Path(folder, name)
    if (held := _others_in(target)) is not None:
        raise ServingError(
            f"{target} holds {held}, which is not of a model repository; choose another folder"
        )
    text = configuration(name, candidate, max_batch)
    service = Path(folder, f"{name}.yaml")
    service_text = inference_service(name, candidate.run, known_address(service))
    labels = "".join(f"{' '.join(label.split())}\n" for label in artifact.require_manifest().labels)
    make_folder(target / "1")
    write_file(target / "1" / FILE, artifact.path.read_bytes())
    if not artifact.is_unchanged():
        raise ArtifactError(f"{artifact.path} was replaced while it was copied; write the repository again")
    copied = certificate_path(target / "1" / FILE)
    if read_certificates(artifact):
        write_file(copied, certificate_path(artifact.path).read_bytes())
    else:
        copied.unlink(missing_ok=True)
    write_file(target / LABELS, labels.encode())
    write_file(service, service_text.encode("utf-8", "surrogateescape"))
    write_file(target / CONFIG, text.encode())  # last: with it the model is complete
    return target


def configuration(name: str, candidate: Candidate, max_batch: int) -> str:
    """Return the text of ``config.pbtxt``."""
    manifest, run = candidate.artifact.require_manifest(), candidate.run
    batched = isinstance(manifest.input.shape[0], str)
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch if batched else 0}",
        f"input [ {_tensor(manifest.input, batched)} ]",
    ]
    for spec in manifest.outputs:
        labels = (
            f" label_filename: {json.dumps(LABELS)}" if spec.shape[-1:] == (len(manifest.labels),) else ""
        )
        lines.append(f"output [ {_tensor(spec, batched, labels)} ]")
    return "\n".join([*lines, *_placement(run, batched)]) + "\n"


def _placement(run: Run, batched: bool) -> Iterator[str]:
    device, _, number = run.device.partition(":")
    if device == "cuda":
        yield f"instance_group [ {{ count: 1 kind: KIND_GPU gpus: [ {number or 0} ] }} ]"
        # ONNX Runtime's own default is 1
        tf32 = f'parameters {{ key: "use_tf32" value: "{int(run.choices.precision == "tf32")}" }}'
        accelerator = f'gpu_execution_accelerator [ {{ name: "cuda" {tf32} }} ]'
        yield f"optimization {{ execution_accelerators {{ {accelerator} }} }}"
        if batched:
            yield f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}"
        return
    yield "instance_group [ { count: 1 kind: KIND_CPU } ]"
    threads = f'key: "intra_op_thread_count" value: {{ string_value: "{run.thread_count}" }}'
    yield f"parameters {{ {threads} }}"


def _tensor(spec: TensorSpec, batched: bool, more: str = "") -> str:
    shape = protocol_shape(spec)[1 if batched else 0 :]
    datatype = f"TYPE_{DATATYPES[spec.dtype]}"
    return f"{{ name: {json.dumps(spec.name)} data_type: {datatype} dims: [ {', '.join(map(str, shape))} ]{more} }}"


def _others_in(target: Path) -> str | None:
    """Return the name of something in a model's folder that this module does not write; None if there is nothing."""
    ours = {CONFIG, LABELS, "1", f"1/{FILE}", f"1/{certificate_path(FILE).name}"}
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        return "no folder"
    held = (str(path.relative_to(target)) for path in target.rglob("*"))
    return next((path for path in held if path not in ours), None)
