"""The model of `bench.ceiling` behind the guard, to measure the cost of authenticating each request."""

from starlette.applications import Starlette
from starlette.routing import Route

from bench.ceiling import live, predict
from mlapi.entrypoints.guard import GuardMiddleware

app = GuardMiddleware(
    Starlette(routes=[Route("/predict", predict), Route("/health/live", live)]), exempt=["/health/live"]
)
