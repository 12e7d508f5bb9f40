"""A web service around one model: send it images, get their labels.

    pip install 'cnndeploy[cpu]' fastapi uvicorn python-multipart
    CNNDEPLOY_MODEL=lenet.onnx python examples/server.py
    curl -F image=@shoe.png localhost:8000/classify

On SIGTERM or Ctrl-C it takes no more requests, answers those that it has, and closes the model.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Query, Request, UploadFile
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

import cnndeploy

MOST_BYTES, MOST_IMAGES = 10 * 2**20, 64
Top = Annotated[int, Query(ge=1)]


@asynccontextmanager
async def opened_model(app: FastAPI) -> AsyncIterator[None]:
    """One model for all requests: threads may share it."""
    if not (path := os.environ.get("CNNDEPLOY_MODEL")):
        raise RuntimeError("set CNNDEPLOY_MODEL to the path of an exported file")
    with cnndeploy.load(path) as model:
        model.warmup()
        app.state.model = model
        yield


app = FastAPI(title="cnndeploy", lifespan=opened_model)


@app.exception_handler(cnndeploy.CnndeployError)
def refused(_: Request, error: cnndeploy.CnndeployError) -> JSONResponse:
    """What was sent is no image that can be classified."""
    return JSONResponse({"error": str(error)}, status_code=422)


@app.get("/health")
def health(request: Request) -> dict[str, Any]:
    """Whether a model is ready, and which; used by what watches the service."""
    model = request.app.state.model
    return {"status": "ready", "architecture": model.manifest.architecture, "labels": model.labels}


# These two are no coroutines, so each request runs in a thread and a slow one keeps no other waiting.


@app.post("/classify")
def classify(request: Request, image: Annotated[UploadFile, File()], top: Top = 1) -> dict[str, Any]:
    """The classes of one image."""
    (prediction,) = request.app.state.model.classify([_pixels(image)], top=top)
    return {"classes": _classes(prediction)}


@app.post("/classify/batch")
def classify_batch(request: Request, images: Annotated[list[UploadFile], File()], top: Top = 1) -> Any:
    """The classes of many images, in the order they were sent; nothing if one of them is damaged."""
    if len(images) > MOST_IMAGES:
        return JSONResponse({"error": f"at most {MOST_IMAGES} images a request"}, status_code=413)
    predictions = request.app.state.model.classify([_pixels(image) for image in images], top=top)
    return {
        "images": [
            {"name": image.filename, "classes": _classes(prediction)}
            for image, prediction in zip(images, predictions, strict=True)
        ]
    }


def _pixels(image: UploadFile) -> NDArray[np.uint8]:
    if image.size is None or image.size > MOST_BYTES:
        raise cnndeploy.CnndeployError(f"{image.filename} has more than {MOST_BYTES:,} bytes")
    try:
        return cnndeploy.read_image(image.file)
    except cnndeploy.CnndeployError as error:
        raise cnndeploy.CnndeployError(f"{image.filename}: {error}") from error


def _classes(prediction: cnndeploy.Prediction) -> list[dict[str, Any]]:
    ranked = (prediction, *prediction.runners_up)
    return [{"label": each.label, "probability": each.probability} for each in ranked]


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
