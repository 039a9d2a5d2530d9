"""Adopts a database of the legacy app: its ``users`` table becomes mlapi's."""

from mlapi.adapters.sql.adoption.findings import Choice, Finding, Found
from mlapi.adapters.sql.adoption.migrate import Adoption

__all__ = ["Adoption", "Choice", "Finding", "Found"]
