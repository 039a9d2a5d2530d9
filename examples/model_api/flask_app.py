"""The model in Flask: `python -m examples.model_api.flask_app`, in the folder of the service."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from examples.model_api.model import species
from flask import Flask, Response, g, request

from mlapi import Guard, MlapiError
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings
from mlapi.entrypoints.wire.headers import get_bearer_credential, wsgi_headers
from mlapi.entrypoints.wire.responses import error_response

P = ParamSpec("P")
T = TypeVar("T")


def guarded(guard: Guard) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a decorator that lets only users into a view, and tells it who they are in ``g.user``."""

    def decorate(view: Callable[P, T]) -> Callable[P, T]:
        @wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            g.user = guard.check(get_bearer_credential(wsgi_headers(request.environ)))
            return view(*args, **kwargs)

        return checked

    return decorate


def create_app(guard: Guard) -> Flask:
    app = Flask(__name__, static_folder=None)

    @app.errorhandler(MlapiError)
    def refuse(error: MlapiError) -> Response:
        answer = error_response(error)
        return Response(answer.body, answer.status, answer.headers, content_type="application/json")

    @app.errorhandler(ValueError)
    def say_what_is_wrong(error: ValueError) -> tuple[dict[str, str], int]:
        return {"message": str(error)}, 422

    @app.post("/predict")
    @guarded(guard)
    def predict() -> dict[str, str]:
        return {"species": species(request.get_json()), "asked_by": g.user.username}

    return app


if __name__ == "__main__":
    with open_guard(load_settings()) as opened:
        create_app(opened).run(port=8002)
