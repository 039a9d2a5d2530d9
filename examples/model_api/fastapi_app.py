r"""Serve the model with FastAPI to enabled users only.

Install mlapi, and run ``pip install scikit-learn fastapi``. Run this command in the service's folder, so
that both use the same database. Replace ``~/mlapi`` with the path of the checkout::

    PYTHONPATH=~/mlapi uvicorn examples.model_api.fastapi_app:app --port 8002

Call it with a token from the service::

    curl -X POST http://localhost:8002/predict -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
         -d '{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'

Here, the guard is a dependency. docs/guard.md shows a shorter way: ``app.add_middleware(GuardMiddleware)``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from examples.model_api.model import classify
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, FiniteFloat

from mlapi import MlapiError, User
from mlapi.bootstrap import async_guard, open_guard
from mlapi.config import load_settings
from mlapi.entrypoints.guard import AdmissionMiddleware, admit_request
from mlapi.entrypoints.http.middleware import handle_error


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with open_guard(load_settings()) as guard, async_guard(guard) as app.state.guard:
        yield


async def current_user(request: Request) -> User:
    return (await admit_request(request, request.app.state.guard)).user


class Flower(BaseModel):
    sepal_length: FiniteFloat
    sepal_width: FiniteFloat
    petal_length: FiniteFloat
    petal_width: FiniteFloat


# Disable the OpenAPI pages: FastAPI does not apply the dependency to them, so the guard would not protect them.
app = FastAPI(lifespan=lifespan, dependencies=[Depends(current_user)], openapi_url=None)
app.add_middleware(AdmissionMiddleware)
app.add_exception_handler(MlapiError, handle_error)


@app.post("/predict")
async def predict(flower: Flower, user: Annotated[User, Depends(current_user)]) -> dict[str, str]:
    return {"species": await run_in_threadpool(classify, flower.model_dump()), "asked_by": user.username}
