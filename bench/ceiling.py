"""The three endpoints in bare Starlette, without a database: an upper bound for mlapi's throughput."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def toggle(request: Request) -> JSONResponse:
    user_id = request.path_params["user_id"]
    _flag = request.path_params["permission"]
    return JSONResponse({"message": "User permission updated successfully", "user_id": user_id})


async def register(request: Request) -> JSONResponse:
    await request.json()
    return JSONResponse({"message": "User created successfully", "user_id": 1}, status_code=201)


async def remove(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "User deleted successfully"})


async def predict(_request: Request) -> JSONResponse:
    """Return a constant: the cheapest possible model. `bench.guarded` puts it behind the guard."""
    return JSONResponse({"species": "setosa"})


async def live(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "Alive"})


app = Starlette(
    routes=[
        Route("/toggle-user-permission/{user_id}/{permission}", toggle, methods=["PUT"]),
        Route("/register-user", register, methods=["POST"]),
        Route("/remove-user/{user_id}", remove, methods=["DELETE"]),
        Route("/predict", predict),
        Route("/health/live", live),
    ]
)
