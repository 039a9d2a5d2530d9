"""A model endpoint behind the guard. Tests run it in separate processes next to the service."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlapi.entrypoints.guard import GuardMiddleware


async def predict(request: Request) -> JSONResponse:
    return JSONResponse({"asked_by": request.user.username})


async def health(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "Alive"})


app = GuardMiddleware(Starlette(routes=[Route("/predict", predict), Route("/health", health)]), exempt=["/health"])
