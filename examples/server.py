"""Serve one model over HTTP: send images, get their labels.

    pip install 'cnndeploy[cpu]' fastapi uvicorn python-multipart
    CNNDEPLOY_MODEL=lenet.onnx python examples/server.py
    curl -F image=@shoe.png localhost:8000/classify

HOST and PORT set where it listens, 127.0.0.1 and 8000 by default. On SIGTERM or Ctrl-C it accepts no more requests,
answers those that it has, and closes the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

import cnndeploy
from cnndeploy.errors import DataError, InputMismatchError

# A file of a few kilobytes may hold many megapixels, so both are limited.
MOST_BYTES, MOST_PIXELS, MOST_IMAGES = 10 * 2**20, 4 * 2**20, 64
Top = Annotated[int, Query(ge=1)]


@asynccontextmanager
async def opened_model(app: FastAPI) -> AsyncIterator[None]:
    """Open one model for all requests: threads may share it."""
    with cnndeploy.load(os.environ["CNNDEPLOY_MODEL"]) as model:
        model.warmup()
        app.state.model = model
        yield


app = FastAPI(title="cnndeploy", lifespan=opened_model)


@app.exception_handler(DataError)
@app.exception_handler(InputMismatchError)
def refused(_: Request, error: cnndeploy.CnndeployError) -> JSONResponse:
    """Answer 422 if an image cannot be classified; any other error is the service's own, and a 500."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.get("/health")
def health(request: Request) -> dict[str, Any]:
    """Report that a model is ready, and which one, to whatever watches the service."""
    model = request.app.state.model
    return {"status": "ready", "architecture": model.manifest.architecture, "labels": model.labels}


# These two are not coroutines, so each request runs in a thread, and a slow one does not hold up the others.


@app.post("/classify")
def classify(request: Request, image: Annotated[UploadFile, File()], top: Top = 1) -> dict[str, Any]:
    """Classify one image."""
    (prediction,) = request.app.state.model.classify([_pixels(image)], top=top)
    return {"classes": _classes(prediction)}


@app.post("/classify/batch")
def classify_batch(
    request: Request, images: Annotated[list[UploadFile], File()], top: Top = 1
) -> dict[str, Any]:
    """Classify many images, in the order they were sent; no answer at all if one of them is damaged."""
    if len(images) > MOST_IMAGES:
        raise HTTPException(413, f"at most {MOST_IMAGES} images a request")
    # a generator: each image is decoded when its turn comes, and then freed
    predictions = request.app.state.model.classify((_pixels(image) for image in images), top=top)
    return {
        "images": [
            {"name": image.filename, "classes": _classes(prediction)}
            for image, prediction in zip(images, predictions, strict=True)
        ]
    }


def _pixels(image: UploadFile) -> NDArray[np.uint8]:
    if image.size is None or image.size > MOST_BYTES:
        raise HTTPException(413, f"{image.filename} has more than {MOST_BYTES:,} bytes")
    try:
        pixels = cnndeploy.read_image(image.file)
    except DataError as error:
        raise DataError(f"{image.filename}: {error}") from error
    if pixels.size > MOST_PIXELS:
        raise HTTPException(413, f"{image.filename} has more than {MOST_PIXELS:,} pixels")
    return pixels


def _classes(prediction: cnndeploy.Prediction) -> list[dict[str, Any]]:
    ranked = (prediction, *prediction.runners_up)
    return [{"label": one.label, "probability": one.probability} for one in ranked]


if __name__ == "__main__":
    import uvicorn

    if "CNNDEPLOY_MODEL" not in os.environ:
        sys.exit("Error: set CNNDEPLOY_MODEL to the path of an exported file")
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
