"""An ``InferenceService``: what Kubernetes is given so that KServe serves a model of a repository, with NVIDIA Triton.

Sources: KServe's API reference (serving.kserve.io/v1beta1), its runtime ``kserve-tritonserver``, and Triton's "Model
Management".
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from cnndeploy.errors import ArtifactError, ServingError
from cnndeploy.run import Run

# Only the user knows where the repository is. An address that was filled in is kept.
UNKNOWN = "pvc://CLAIM/models"
_ADDRESS = re.compile(r"^ +storageUri: (\S.*)$", re.MULTILINE)
_OURS = "# cnndeploy export --format triton wrote this."
_MOST_NAME = 48  # KServe appends to it, and the result may have 63 characters at most


def known_address(path: Path) -> str:
    """Return the ``storageUri`` of the YAML at ``path``, or a placeholder if there is none.

    Raise ServingError if cnndeploy did not write the file, ArtifactError if it cannot be read.
    """
    try:
        held = path.read_text("utf-8", "surrogateescape") if path.exists() else _OURS
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if not held.startswith(_OURS):
        raise ServingError(f"{path} was not written by cnndeploy; move it, or choose another folder")
    return next(iter(_ADDRESS.findall(held)), UNKNOWN)


def inference_service(model: str, run: Run, address: str) -> str:
    """Return the YAML of a service of one model of the repository at ``address``.

    It asks for as many CPUs as ``run`` has threads. If ``run`` names GPU N, it asks for N + 1 GPUs.
    """
    device, _, number = run.device.partition(":")
    # the runtime allows one CPU, whatever the number of threads
    needs = [f'cpu: "{run.thread_count}"']
    if device == "cuda":
        needs.append(f'nvidia.com/gpu: "{int(number or 0) + 1}"')
    amounts = "\n".join(f"          {need}" for need in needs)
    return f"""\
{_OURS}
# Upload the model repository in this folder, set storageUri to where it is, then:
#   kubectl apply --filename FILE
# Exporting the model again rewrites this file and keeps only storageUri.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service_name(model)}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      protocolVersion: v2
      runtime: kserve-tritonserver
      storageUri: {address}
      args:
        - --model-control-mode=explicit
        - {json.dumps(f"--load-model={model}", ensure_ascii=False)}
      resources:
        requests:
{amounts}
        limits:
{amounts}
"""


def service_name(model: str) -> str:
    """Return a name that Kubernetes takes: small letters, digits and hyphens, with a letter at its start.

    If it differs from the model's name, it ends with part of that name's hash, so that two models never share a name.
    """
    name = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}".strip("-")
    if name == model and len(name) <= _MOST_NAME:
        return name
    return f"{name[: _MOST_NAME - 7].strip('-')}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
