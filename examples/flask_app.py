"""The three endpoints in Flask, with the same responses as the service. Run `python examples/flask_app.py`."""

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from mlapi import Actor, MlapiError, Users
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.error_responses import error_response, http_error_response
from mlapi.entrypoints.wire.errors import MAX_BODY_BYTES
from mlapi.entrypoints.wire.headers import validate_content_headers, wsgi_headers


def create_app(users: Users, admin_policy: AdminPolicy) -> Flask:
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.before_request(lambda: admin_policy.check(Client.from_wsgi(request.environ)))
    app.register_error_handler(MlapiError, lambda error: _respond(error_response(error)))

    @app.errorhandler(HTTPException)
    def handle_http_exception(error: HTTPException) -> Response:
        return _respond(
            http_error_response(error.code or 500, [pair for pair in error.get_headers() if pair[0] == "Allow"])
        )

    @app.post("/register-user", provide_automatic_options=False)
    def register() -> Response:
        headers = wsgi_headers(request.environ)
        validate_content_headers(headers)
        body = requests.decode(request.stream.read(MAX_BODY_BYTES + 1), requests.RegisterRequest)
        actor = Actor(admin_policy.registration_actor(headers))
        return _respond(responses.user_registered(users.as_actor(actor).register(**msgspec.structs.asdict(body))))

    @app.put("/toggle-user-permission/<user_id>/<permission>", provide_automatic_options=False)
    def toggle(user_id: str, permission: str) -> Response:
        parsed_id, enabled = requests.parse_user_id(user_id), requests.parse_permission(permission)
        return _respond(responses.permission_updated(users.set_enabled(user_id=parsed_id, enabled=enabled)))

    @app.delete("/remove-user/<user_id>", provide_automatic_options=False)
    def remove(user_id: str) -> Response:
        return _respond(responses.user_removed(users.remove(user_id=requests.parse_user_id(user_id))))

    return app


def _respond(response: responses.Response) -> Response:
    return Response(response.body, response.status, response.headers, content_type="application/json")


if __name__ == "__main__":
    with open_service(load_settings()) as service:
        create_app(service.users, AdminPolicy.from_settings(service.settings)).run(port=8001)
