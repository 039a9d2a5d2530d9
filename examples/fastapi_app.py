"""The three endpoints in FastAPI, with the same responses as the service. Run `python examples/fastapi_app.py`."""

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from mlapi import Actor, MlapiError, Users
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.middleware import RequireAdmin, handle_error, handle_http_exception, starlette_response
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.headers import validate_content_headers


def create_app(users: Users, admin_policy: AdminPolicy) -> FastAPI:
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(MlapiError, handle_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.state.admin_policy = admin_policy
    app.add_middleware(RequireAdmin)

    @app.post("/register-user")
    async def register(request: Request) -> Response:
        validate_content_headers(request.scope["headers"])
        body = requests.decode(await requests.read_body(request.stream()), requests.RegisterRequest)
        actor = Actor(admin_policy.registration_actor(request.scope["headers"]))
        user = await run_in_threadpool(
            users.as_actor(actor).register, username=body.username, password=body.password, email=body.email
        )
        return starlette_response(responses.user_registered(user))

    @app.put("/toggle-user-permission/{user_id}/{permission}")
    def toggle(user_id: str, permission: str) -> Response:
        parsed_id, enabled = requests.parse_user_id(user_id), requests.parse_permission(permission)
        return starlette_response(responses.permission_updated(users.set_enabled(user_id=parsed_id, enabled=enabled)))

    @app.delete("/remove-user/{user_id}")
    def remove(user_id: str) -> Response:
        return starlette_response(responses.user_removed(users.remove(user_id=requests.parse_user_id(user_id))))

    return app


if __name__ == "__main__":
    with open_service(load_settings()) as service:
        uvicorn.run(create_app(service.users, AdminPolicy.from_settings(service.settings)), port=8001)
