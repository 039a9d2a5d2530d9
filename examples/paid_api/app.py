"""Sell a model by the month: customers sign up, pay, and predict within the limits of their plan. See README.md."""

import asyncio
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from examples.model_api.model import classify
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, FiniteFloat

from mlapi import Extension, MlapiError, Users
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.entrypoints.http.middleware import handle_error


class Customer(BaseModel):
    username: str
    password: str
    email: str


class Payment(BaseModel):
    id: str
    username: str
    plan: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.secret = os.environ["PAYMENT_SECRET"].encode()
    app.state.one_payment_at_a_time = asyncio.Lock()
    with open_users(load_settings()) as app.state.users:
        yield


app = FastAPI(lifespan=lifespan, openapi_url=None)
app.add_middleware(GuardMiddleware, exempt=["/sign-up", "/payments"])
app.add_exception_handler(MlapiError, handle_error)


@app.post("/sign-up", status_code=201)
def sign_up(request: Request, customer: Customer) -> dict[str, object]:
    user = request.app.state.users.register(**customer.model_dump(), expires=datetime.now(UTC))
    return {"message": "Access starts with the first payment", "user_id": user.id}


@app.post("/payments")
async def receive_payment(request: Request, payment: Payment) -> dict[str, str]:
    signature = hmac.digest(request.app.state.secret, await request.body(), "sha256").hex()
    if not hmac.compare_digest(signature.encode(), request.headers.get("payment-signature", "").encode()):
        raise HTTPException(401, "Invalid signature")
    async with request.app.state.one_payment_at_a_time:
        await run_in_threadpool(extend_access, request.app.state.users, payment)
    return {"message": "Payment received"}


def extend_access(users: Users, payment: Payment) -> None:
    user = users.find(payment.username)
    if user is None:
        raise HTTPException(404, "Unknown customer")
    metadata = user.metadata.as_dict()
    handled = metadata.get("payments", [])
    if payment.id not in handled:  # providers may send a message twice
        metadata["payments"] = [*handled[-11:], payment.id]
        users.update(user_id=user.id, expires=Extension(months=1), plan=payment.plan, metadata=metadata)


@app.post("/predict")
def predict(flower: dict[str, FiniteFloat]) -> dict[str, str]:
    try:
        return {"species": classify(flower)}
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
