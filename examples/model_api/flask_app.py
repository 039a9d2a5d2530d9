r"""Serve the model with Flask to enabled users only.

Install mlapi, and run ``pip install scikit-learn flask``. Run this command in the service's folder, so
that both use the same database. Replace ``~/mlapi`` with the path of the checkout::

    PYTHONPATH=~/mlapi python -m examples.model_api.flask_app

Call it with a token from the service::

    curl -X POST http://localhost:8002/predict -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
         -d '{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from examples.model_api.model import classify
from flask import Flask, Response, g, request

from mlapi import Guard, MlapiError
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings
from mlapi.entrypoints.wire.error_responses import error_response
from mlapi.entrypoints.wire.headers import get_bearer_credential, wsgi_headers
from mlapi.entrypoints.wire.rate_limits import rate_limit_headers

P = ParamSpec("P")
T = TypeVar("T")


def guarded(guard: Guard) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that admits a request, or raises an `MlapiError`.

    It stores the admission in ``g.admission``. Call ``g.admission.charge(1234)`` to count units.
    """

    def decorate(view: Callable[P, T]) -> Callable[P, T]:
        @wraps(view)
        def guarded_view(*args: P.args, **kwargs: P.kwargs) -> T:
            headers = wsgi_headers(request.environ)
            g.admission = guard.admit(get_bearer_credential(headers, accept_bare=guard.accept_bare))
            return view(*args, **kwargs)

        return guarded_view

    return decorate


def create_app(guard: Guard) -> Flask:
    app = Flask(__name__, static_folder=None)

    @app.errorhandler(MlapiError)
    def handle_error(error: MlapiError) -> Response:
        response = error_response(error)
        return Response(response.body, response.status, response.headers, content_type="application/json")

    @app.after_request
    def add_rate_limits(response: Response) -> Response:
        if "admission" in g:
            response.headers.extend(rate_limit_headers(g.admission.limits))
        return response

    @app.errorhandler(ValueError)
    def handle_value_error(error: ValueError) -> tuple[dict[str, str], int]:
        return {"message": str(error)}, 422

    @app.post("/predict")
    @guarded(guard)
    def predict() -> dict[str, str]:
        return {"species": classify(request.get_json()), "asked_by": g.admission.user.username}

    return app


if __name__ == "__main__":
    with open_guard(load_settings()) as guard:
        create_app(guard).run(port=8002)
