"""A model endpoint behind the guard. Tests run it in separate processes next to the service."""

from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from mlapi.entrypoints.guard import GuardMiddleware

UNITS = 7


async def predict(request: Request) -> JSONResponse:
    return JSONResponse({"asked_by": request.user.username})


async def generate(request: Request) -> StreamingResponse:
    """Stream a response of `UNITS` tokens, and charge them at its end."""

    async def stream() -> AsyncIterator[str]:
        try:
            for _ in range(UNITS):
                yield "token "
        finally:
            request.scope["mlapi"].charge(UNITS)

    return StreamingResponse(stream())


async def health(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "Alive"})


ROUTES = [Route("/predict", predict), Route("/generate", generate), Route("/health", health)]
app = GuardMiddleware(Starlette(routes=ROUTES), exempt=["/health"])
