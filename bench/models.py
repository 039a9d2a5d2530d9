"""Models behind a proxy, to compare the cost of the check with the cost of a prediction."""

import asyncio

from examples.model_api.model import MEASUREMENTS, classify
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.ceiling import live

FLOWER = dict.fromkeys(MEASUREMENTS, 1.5)
GPU_SECONDS = 0.05


async def predict(_request: Request) -> JSONResponse:
    """Compute a prediction on the processor."""
    return JSONResponse({"species": classify(FLOWER)})


async def wait(_request: Request) -> JSONResponse:
    """Wait as if a GPU computed the prediction: the processor is idle."""
    await asyncio.sleep(GPU_SECONDS)
    return JSONResponse({"species": "setosa"})


regression = Starlette(routes=[Route("/predict", predict), Route("/health/live", live)])
waiting = Starlette(routes=[Route("/predict", wait), Route("/health/live", live)])
