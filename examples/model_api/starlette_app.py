r"""Serve the model with Starlette to enabled users only.

Install mlapi, and run ``pip install scikit-learn``. Run this command in the service's folder, so
that both use the same database. Replace ``~/mlapi`` with the path of the checkout::

    PYTHONPATH=~/mlapi uvicorn examples.model_api.starlette_app:app --port 8002

Call it with a token from the service::

    curl -X POST http://localhost:8002/predict -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
         -d '{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'
"""

from examples.model_api.model import classify
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlapi.entrypoints.guard import GuardMiddleware


async def predict(request: Request) -> JSONResponse:
    try:
        name = await run_in_threadpool(classify, await request.json())
    except ValueError as error:  # also raised for invalid JSON
        return JSONResponse({"message": str(error)}, 422)
    return JSONResponse({"species": name, "asked_by": request.user.username})


async def health(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "Alive"})


app = GuardMiddleware(
    Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)]),
    exempt=["/health"],
)
