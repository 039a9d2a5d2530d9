"""An application that mounts the service and a guarded model. `test_embedding` runs it."""

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.entrypoints.http import compose_lifespans, create_app

RECHECK_SECONDS = 0.2


async def stream(_request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        while True:
            yield "chunk\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(chunks(), media_type="text/plain")


async def wait_silently(_request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        yield "chunk\n"
        await asyncio.Event().wait()

    return StreamingResponse(chunks(), media_type="text/plain")


async def predict(request: Request) -> JSONResponse:
    return JSONResponse(request.user.username)


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json([socket.user.username, socket.scope["subprotocols"]])
    async for text in socket.iter_text():
        await socket.send_text(text)


people = create_app()
model = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/stream", stream),
        Route("/silence", wait_silently),
        WebSocketRoute("/echo", echo),
    ],
    middleware=[
        Middleware(
            CORSMiddleware,
            allow_origins=[os.environ["MLAPI_HTTP__CORS_ORIGINS"]],
            allow_methods=["POST"],
            allow_headers=["Authorization"],
        ),
        Middleware(GuardMiddleware, recheck_seconds=RECHECK_SECONDS),
    ],
)
app = Starlette(
    routes=[Mount("/people", people), Mount("/model", model)],
    lifespan=compose_lifespans(people, model),
)
