"""The three endpoints with fastapi-users on FastAPI and async SQLAlchemy, using the library's `UserManager`.

    python fastapi_users_app.py prepare 1000     # recreates the schema and users 1..1000, writes their tokens
    uvicorn fastapi_users_app:app

PEER_DATABASE_URL is ``sqlite:////abs/path.db`` or ``postgresql://user:password@host:port/db``. PEER_HASH is ``default``
(the library's argon2id) or ``cheap`` (one salted SHA-256).

This follows the library's documentation: it uses the table of the SQLAlchemy adapter, with an integer id and one more
field, and a session for each request. The e-mail address is the unique key, and a duplicate is rejected with 400. Three
changes favor the library: one dependency instead of three nested ones; an index on ``lower(email)``, because each
lookup would otherwise read the whole table; and 400 instead of 500 for the later of two concurrent registrations. The
bodies match mlapi's.

The endpoints have no authentication, while mlapi checks that each request comes from this machine. Durability is the
same: WAL and synchronous=FULL on SQLite, synchronous_commit=on on PostgreSQL.
"""

import asyncio
import hashlib
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated

from engines import make_engine
from fastapi import Depends, FastAPI, HTTPException, Path
from fastapi_users import BaseUserManager, FastAPIUsers, IntegerIDMixin, schemas
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from fastapi_users.exceptions import InvalidID, UserAlreadyExists, UserNotExists
from fastapi_users.password import PasswordHelper
from fastapi_users_db_sqlalchemy import SQLAlchemyBaseUserTable, SQLAlchemyUserDatabase
from sqlalchemy import Index, String, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class CheapPasswordHelper(PasswordHelper):
    """A hash about as cheap as one Fernet encryption. Unsuitable for real passwords: it cannot verify them."""

    def hash(self, password: str) -> str:
        salt = secrets.token_bytes(16)
        return f"sha256${salt.hex()}${hashlib.sha256(salt + password.encode()).hexdigest()}"


password_helper = CheapPasswordHelper() if os.environ.get("PEER_HASH") == "cheap" else PasswordHelper()
engine = make_engine(os.environ["PEER_DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class User(SQLAlchemyBaseUserTable[int], Base):
    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(150))


Index("ix_user_lower_email", func.lower(User.email))


class UserCreate(schemas.BaseUserCreate):
    username: str


class UserManager(IntegerIDMixin, BaseUserManager[User, int]):
    pass


async def get_user_manager() -> AsyncIterator[UserManager]:
    async with new_session() as session:
        yield UserManager(SQLAlchemyUserDatabase(session, User), password_helper)


Manager = Annotated[UserManager, Depends(get_user_manager)]


async def get_user_or_404(user_id: str, manager: Manager) -> User:
    try:
        return await manager.get(manager.parse_id(user_id))
    except (InvalidID, UserNotExists) as error:
        raise HTTPException(404) from error


@app.post("/register-user", status_code=201)
async def register_user(body: UserCreate, manager: Manager) -> dict[str, str | int]:
    try:
        user = await manager.create(body, safe=True)
    except (UserAlreadyExists, IntegrityError) as error:
        raise HTTPException(400, "REGISTER_USER_ALREADY_EXISTS") from error
    return {"message": "User created successfully", "user_id": user.id}


@app.put("/toggle-user-permission/{user_id}/{permission}")
async def toggle_user_permission(
    permission: Annotated[int, Path(ge=0, le=1)], user: Annotated[User, Depends(get_user_or_404)], manager: Manager
) -> dict[str, str | int]:
    await manager.update(schemas.BaseUserUpdate(is_active=permission == 1), user)
    return {"message": "User permission updated successfully", "user_id": user.id}


@app.delete("/remove-user/{user_id}")
async def remove_user(user: Annotated[User, Depends(get_user_or_404)], manager: Manager) -> dict[str, str]:
    await manager.delete(user)
    return {"message": "User deleted successfully"}


# How the library itself guards an endpoint: it verifies a JWT and reads the user on each request.
SECRET = "a key of 32 characters or more, for the benchmark only"  # noqa: S105 - it protects nothing
backend = AuthenticationBackend(
    name="jwt",
    transport=BearerTransport(tokenUrl="token"),
    get_strategy=lambda: JWTStrategy(SECRET, lifetime_seconds=86400),
)
fastapi_users = FastAPIUsers[User, int](get_user_manager, [backend])
ActiveUser = Annotated[User, Depends(fastapi_users.current_user(active=True))]


@app.get("/predict")
async def predict(_user: ActiveUser) -> dict[str, str]:
    return {"species": "setosa"}


@app.get("/health/live")
async def live() -> dict[str, str]:
    return {"message": "Alive"}


async def prepare(count: int) -> list[str]:
    hashed = password_helper.hash("password")
    names = [f"seed{number}" for number in range(1, count + 1)]
    rows = [{"username": name, "email": f"{name}@example.com", "hashed_password": hashed} for name in names]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), rows)
    async with new_session() as session:
        users = (await session.scalars(select(User).order_by(User.id).limit(1000))).all()
        strategy = JWTStrategy[User, int](SECRET, lifetime_seconds=86400)
        tokens = [await strategy.write_token(user) for user in users]
    await engine.dispose()
    return tokens


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "prepare":
        sys.exit("usage: python fastapi_users_app.py prepare N")
    FilePath("tokens").write_text("\n".join(asyncio.run(prepare(int(sys.argv[2])))))
