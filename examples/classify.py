"""Classify image files in plain Python; needs `pip install 'cnndeploy[cpu]'` and no PyTorch.

python examples/classify.py lenet.onnx shoe.png bag.png
"""

import sys

import cnndeploy


def main(model_path: str, *image_paths: str) -> None:
    images = [cnndeploy.read_image(path) for path in image_paths]
    with cnndeploy.load(model_path) as model:
        for path, prediction in zip(image_paths, model.classify(images), strict=True):
            print(f"{path}: {prediction.label} {prediction.probability:.6f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python classify.py MODEL IMAGE ...")
    try:
        main(*sys.argv[1:])
    except cnndeploy.CnndeployError as error:
        sys.exit(f"Error: {error}")
