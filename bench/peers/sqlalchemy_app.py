"""The three endpoints on Starlette and SQLAlchemy's asyncio extension, written by hand without a user library.

    python sqlalchemy_app.py prepare 1000     # recreates the schema and users 1..1000
    uvicorn sqlalchemy_app:app

PEER_DATABASE_URL is ``sqlite:////abs/path.db`` or ``postgresql://user:password@host:port/db``. PEER_HASH is ``default``
(argon2-cffi's argon2id, in a thread) or ``cheap`` (one salted SHA-256, without a thread, which would cost more).

This is the usual tutorial application, made correct: the unique index decides who gets a username, every request has
its own session and commits before it responds, unknown ids get 404 and taken names 409. A change loads the user and
changes it, as in the tutorials of SQLAlchemy and FastAPI; a single UPDATE statement would be faster.

The endpoints have no authentication, audit trail or metrics. Durability is the same as mlapi's: WAL and
synchronous=FULL on SQLite, synchronous_commit=on on PostgreSQL.
"""

import asyncio
import hashlib
import os
import secrets
import sys
from datetime import UTC, datetime

from argon2 import PasswordHasher
from engines import make_engine
from sqlalchemy import String, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

engine = make_engine(os.environ["PEER_DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)
hasher = PasswordHasher()
NOT_FOUND = {"message": "User not found"}


def utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(254), unique=True)
    password: Mapped[str] = mapped_column(String(254))
    email: Mapped[str] = mapped_column(String(254))
    enabled: Mapped[bool] = mapped_column(default=True)
    created_datetime: Mapped[datetime] = mapped_column(default=utc_now)
    updated_datetime: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)


async def hash_password(password: str) -> str:
    if os.environ.get("PEER_HASH") != "cheap":
        return await run_in_threadpool(hasher.hash, password)
    salt = secrets.token_bytes(16)
    return f"sha256${salt.hex()}${hashlib.sha256(salt + password.encode()).hexdigest()}"


async def register_user(request: Request) -> JSONResponse:
    try:
        body = await request.json()
        username, password, email = body["username"], body["password"], body["email"]
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"message": "Invalid request"}, 422)
    if not all(isinstance(text, str) and 0 < len(text) <= 254 for text in (username, password, email)):
        return JSONResponse({"message": "Invalid request"}, 422)
    user = User(username=username, password=await hash_password(password), email=email)
    async with new_session() as session:
        session.add(user)
        try:
            await session.commit()
        except IntegrityError:
            await session.rollback()
            user_id = await session.scalar(select(User.id).where(User.username == username))
            return JSONResponse({"message": "User already exists", "user_id": user_id}, 409)
    return JSONResponse({"message": "User created successfully", "user_id": user.id}, 201)


async def toggle_user_permission(request: Request) -> JSONResponse:
    user_id, permission = request.path_params["user_id"], request.path_params["permission"]
    if permission not in {0, 1}:
        return JSONResponse({"message": "Invalid permission"}, 422)
    async with new_session() as session:
        user = await session.get(User, user_id)
        if user is None:
            return JSONResponse(NOT_FOUND, 404)
        user.enabled = permission == 1
        try:
            await session.commit()
        except StaleDataError:  # removed since it was loaded
            return JSONResponse(NOT_FOUND, 404)
    return JSONResponse({"message": "User permission updated successfully", "user_id": user_id})


async def remove_user(request: Request) -> JSONResponse:
    async with new_session() as session:
        user = await session.get(User, request.path_params["user_id"])
        if user is None:
            return JSONResponse(NOT_FOUND, 404)
        await session.delete(user)
        await session.commit()
    return JSONResponse({"message": "User deleted successfully"})


async def live(_request: Request) -> JSONResponse:
    return JSONResponse({"message": "Alive"})


app = Starlette(
    routes=[
        Route("/register-user", register_user, methods=["POST"]),
        Route("/toggle-user-permission/{user_id:int}/{permission:int}", toggle_user_permission, methods=["PUT"]),
        Route("/remove-user/{user_id:int}", remove_user, methods=["DELETE"]),
        Route("/health/live", live),
    ]
)


async def prepare(count: int) -> None:
    hashed = await hash_password("password")
    names = [f"seed{number}" for number in range(1, count + 1)]
    rows = [{"username": name, "email": f"{name}@example.com", "password": hashed} for name in names]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), rows)
    await engine.dispose()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "prepare":
        sys.exit("usage: python sqlalchemy_app.py prepare N")
    asyncio.run(prepare(int(sys.argv[2])))
