"""The tables, and the version of their form. Adding a column or a table raises the version and adds a step."""

from typing import Final

from sqlalchemy import Column, ColumnElement, Float, Index, Integer, MetaData, String, Table, literal_column

from router.model.request import Route

SCHEMA_VERSION: Final = 1  # PRAGMA user_version; a database of a newer one is refused, never guessed at
APPLICATION_ID: Final = 0x666E_6F64  # "fnod", PRAGMA application_id: tells our file from any other SQLite file

metadata: Final = MetaData()

keys: Final = Table(
    "key",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    Column("privacy", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

usage: Final = Table(
    "usage",
    metadata,
    Column("id", Integer, primary_key=True),  # rises with every row: "newest" needs no trust in the clock
    Column("at", Float, nullable=False),
    Column("request_id", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("member", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("model", String, nullable=False),
    Column("route", String, nullable=False),
    Column("node", String, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("ttft_ms", Float),
    Column("outcome", String, nullable=False),
    Column("cost_usd", Float, nullable=False),
    Index("usage_by_at", "at"),
)

# The monthly spend, read at every start: few rows of many, so an index of just those. The condition is a literal,
# because SQLite matches no parameter to an index.
COMMERCIAL: Final[ColumnElement[str]] = literal_column(f"'{Route.COMMERCIAL.value}'")
Index("usage_by_cost", usage.c.at, usage.c.node, sqlite_where=usage.c.route == COMMERCIAL)
