"""A model endpoint behind the guard. Tests run it in separate processes next to the service."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlapi.entrypoints.guard import GuardMiddleware


async def predict(request: Request) -> JSONResponse:
    return JSONResponse({"asked_by": request.user.username})


app = GuardMiddleware(Starlette(routes=[Route("/predict", predict)]))
