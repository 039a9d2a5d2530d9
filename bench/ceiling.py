"""What Starlette and uvicorn reach on these cores with no work to do: the ceiling that we measure ourselves against."""

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
    """As little as a model can do: an endpoint that is open here, and closed in `bench.guarded`."""
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
