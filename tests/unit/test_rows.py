"""Rows and simple updates are derived from the fields of entities and commands, and from table columns."""

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from sqlalchemy import Column, ColumnElement, Identity, Integer, MetaData, String, Table, bindparam, literal, select
from sqlalchemy.dialects import sqlite

from mlapi.adapters.sql.row_readers import row_reader
from mlapi.adapters.sql.rows import USER_COLUMNS, dict_writer, entity_columns, inserted_columns, row_writer
from mlapi.adapters.sql.sqlite.times import encode_time
from mlapi.adapters.sql.statements import USER_UPDATES, update_row
from mlapi.adapters.sql.tables import UtcDateTime, users
from mlapi.domain.commands import EndTokens, Register
from mlapi.domain.users import EncryptedPassword, User, UserId

LITERAL = {"literal_binds": True}
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Account:
    id: int
    secret: EncryptedPassword
    paid_until: datetime | None = None


accounts = Table(
    "accounts",
    MetaData(),
    Column("paid_until", UtcDateTime),
    Column("id", Integer, Identity(), primary_key=True),
    Column("secret", String, nullable=False),
    Column("note", String),
)


def as_text(column: Column[Any]) -> Any:
    return datetime.isoformat if isinstance(column.type, UtcDateTime) else None


def from_text(field: "attrs.Attribute[Any]") -> Any:
    return datetime.fromisoformat if field.name == "paid_until" else None


def test_columns_follow_the_order_of_the_fields() -> None:
    assert [column.name for column in entity_columns(Account, accounts)] == ["id", "secret", "paid_until"]


def test_reading_a_row_returns_an_entity_with_domain_types() -> None:
    read = row_reader(Account)

    assert read((1, "stored", NOON)) == Account(id=1, secret=EncryptedPassword("stored"), paid_until=NOON)


def test_every_value_except_null_is_decoded() -> None:
    read = row_reader(Account, from_text)

    assert read((1, "stored", NOON.isoformat())).paid_until == NOON
    assert read((1, "stored", None)).paid_until is None


def test_written_row_has_every_column_except_generated_ones() -> None:
    @attrs.frozen(kw_only=True)
    class NewAccount:
        secret: EncryptedPassword
        paid_until: datetime | None

        @property
        def note(self) -> str:
            return "computed"

    write = row_writer(NewAccount, accounts, as_text)
    secret = EncryptedPassword("stored")

    assert write(NewAccount(secret=secret, paid_until=NOON)) == [NOON.isoformat(), "stored", "computed"]
    assert write(NewAccount(secret=secret, paid_until=None)) == [None, "stored", "computed"]


def test_registered_user_survives_a_round_trip() -> None:
    command = Register(username="Ada", password=EncryptedPassword("stored"), email="ada@example.com", at=NOON)
    row = {"id": 7, **dict_writer(Register, users)(command)}

    assert set(row) == {"id", *(column.name for column in inserted_columns(Register, users))}
    assert row_reader(User)([row.get(column.name) for column in USER_COLUMNS]) == command.as_user(row["id"])


def test_column_without_an_attribute_is_not_written() -> None:
    @attrs.frozen(kw_only=True)
    class Unpaid:
        secret: EncryptedPassword
        note: str

    row = dict_writer(Unpaid, accounts)(Unpaid(secret=EncryptedPassword("stored"), note="new"))

    assert row == {"secret": "stored", "note": "new"}
    assert row.keys() == {column.name for column in inserted_columns(Unpaid, accounts)}


def test_update_sets_the_columns_of_its_command() -> None:
    command = EndTokens(user_id=UserId(7), at=NOON, token_epoch="new")
    parameters: dict[str, ColumnElement[Any]] = {name: bindparam(name) for name in USER_UPDATES[EndTokens].parameters}

    new_values = USER_UPDATES[EndTokens].new_values(parameters.__getitem__)

    assert new_values == {"updated_datetime": parameters["at"], "token_epoch": parameters["token_epoch"]}
    assert update_row(command) == {"id": 7, "at": NOON, "token_epoch": "new"}


@pytest.mark.parametrize("microseconds", [0, 1, 500_000])
def test_sqlite_stores_times_as_sqlalchemy_does(microseconds: int) -> None:
    time = NOON.replace(microsecond=microseconds)
    stored = str(select(literal(time, UtcDateTime())).compile(dialect=sqlite.dialect(), compile_kwargs=LITERAL))

    assert f"'{encode_time(time)}'" in stored
