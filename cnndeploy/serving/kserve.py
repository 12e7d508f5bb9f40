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

# Where the repository is, is known to its owner alone; what is there once is kept.
UNKNOWN = "pvc://CLAIM/models"
_ADDRESS = re.compile(r"^ +storageUri: (\S.*)$", re.MULTILINE)
_OURS = "# cnndeploy export --format triton wrote this."
_MOST_NAME = 48  # KServe makes longer names of it, which have 63 characters at most


def known_address(path: Path) -> str:
    """Return the ``storageUri`` of a service's YAML that is there, or one to be filled in.

    Raise ServingError if something else is there, ArtifactError if it cannot be read.
    """
    try:
        held = path.read_text("utf-8", "surrogateescape") if path.exists() else _OURS
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if not held.startswith(_OURS):
        raise ServingError(f"{path} is not of cnndeploy; move it away, or choose another folder")
    return next(iter(_ADDRESS.findall(held)), UNKNOWN)


def inference_service(model: str, run: Run, address: str) -> str:
    """Return the YAML of a service of one model of the repository at ``address``.

    It has as many CPUs as ``run`` has threads, and GPUs up to the one that ``run`` names.
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
# If the model is exported again, only storageUri is kept of this file.
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

    One that is not the model's own ends with a part of its hash, for others may become alike.
    """
    name = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}".strip("-")
    if name == model and len(name) <= _MOST_NAME:
        return name
    return f"{name[: _MOST_NAME - 7].strip('-')}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
