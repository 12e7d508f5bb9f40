"""Networks of torchvision and timm, of different kinds and small: import, export to both formats, verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cnndeploy
from cnndeploy import sources
from cnndeploy.exporters import export
from cnndeploy.importing import trials
from helpers import COLOURS, SMALL_RGB
from strangers import as_trained, with_a_head

# Of large families the class itself, with fewer layers than any builder has; the others as their builders make them.
NETWORKS: dict[str, dict[str, Any]] = {
    "torchvision:resnet18": {},
    "torchvision.models.densenet:DenseNet": {
        "growth_rate": 8,
        "block_config": [2, 2],
        "num_init_features": 16,
    },
    "torchvision:mobilenet_v3_small": {},
    "torchvision:shufflenet_v2_x0_5": {},
    "torchvision:squeezenet1_1": {},
    "torchvision:mnasnet0_5": {},
    "torchvision:googlenet": {},
    "torchvision:regnet_x_400mf": {},
    "torchvision.models.swin_transformer:SwinTransformer": {
        "patch_size": [4, 4],
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": [4, 4],
    },
    "torchvision.models.vision_transformer:VisionTransformer": {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "mlp_dim": 64,
    },
    "timm:test_vit": {"img_size": 32},
    "timm:test_efficientnet": {},
    "timm:test_byobnet": {},
    "timm:test_resnet": {},
    "timm:test_convnext": {},
}
IMAGES = 6


@pytest.mark.field
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_imported_exported_and_equivalent(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    monkeypatch.setattr(trials, "check_export", lambda _: None)  # it is exported below
    torch.manual_seed(0)
    recorded, source = sources.resolved(name, NETWORKS[name], len(COLOURS))
    network = with_a_head(as_trained(sources.build(recorded, source).eval(), SMALL_RGB.size[0]))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    made = cnndeploy.import_model(
        name,
        tmp_path / "m.pt",
        arguments=NETWORKS[name],
        weights=tmp_path / "w.pth",
        preprocessing=SMALL_RGB,
        data=photos,
        images=IMAGES,
    )
    assert made.classes == len(COLOURS)
    with cnndeploy.Reference(made.artifact.path) as reference:
        for kind in ("onnx", "torchscript"):
            report = cnndeploy.verify(export(made.artifact.path, kind), reference, images=IMAGES)
            assert report.reasons == (), kind
            assert report.equivalent
