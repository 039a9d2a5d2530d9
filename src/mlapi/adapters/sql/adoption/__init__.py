"""Adopt the legacy app's database: turn its ``users`` table into mlapi's."""

from mlapi.adapters.sql.adoption.findings import Choice, Finding, Found
from mlapi.adapters.sql.adoption.migrate import Adoption

__all__ = ["Adoption", "Choice", "Finding", "Found"]
