"""Example values for the OpenAPI description."""

from datetime import UTC, datetime

import attrs

from mlapi.application.admissions import Admission
from mlapi.domain.audit import AuditEntry, AuditId
from mlapi.domain.credentials import ApiKey, ApiKeyId, IssuedToken
from mlapi.domain.links import LINK_LIFETIME, Link, LinkId
from mlapi.domain.metadata import Metadata
from mlapi.domain.plans import Allowance, AllowanceState, Window
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import EncryptedPassword, User, UserId

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
USER = User(
    id=UserId(1),
    username="ada",
    password=EncryptedPassword(""),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="",
    expires_datetime=datetime(2030, 1, 31, 12, tzinfo=UTC),
    plan="pro",
    metadata=Metadata.from_object({"customer": "cus_123"}),
)
API_KEY = ApiKey(id=ApiKeyId("0123456789abcdef"), user_id=USER.id, name="nightly job", digest="", created_datetime=NOON)
API_KEY_SECRET = f"mlapi_{API_KEY.id}_{'0' * 64}"
LINK_TOKEN = f"mlapi-link_0123456789abcdef_{'0' * 64}"
LINK = Link(
    id=LinkId("0123456789abcdef"),
    user_id=USER.id,
    purpose="password",
    digest="",
    token_epoch="",
    email=USER.email,
    created_datetime=NOON,
    expires_datetime=NOON + LINK_LIFETIME,
)
ADMISSION = Admission(
    attrs.evolve(USER, plan="free"),
    API_KEY.id,
    (AllowanceState(Allowance("requests", Window.MINUTE, 60), remaining=59, reset_seconds=34),),
    charge=lambda _admission, _units: None,
)
TOKEN = IssuedToken("eyJ...", 3600)
AUDIT_ENTRY = AuditEntry(
    id=AuditId(1),
    at=NOON,
    actor="admin",
    action="register",
    user_id=USER.id,
    api_key_id=None,
    outcome="done",
    request_id=None,
    changes='{"expires_at": [null, "2030-01-31T12:00:00Z"], "plan": [null, "pro"], "metadata": ["customer"]}',
)
USAGE = UsageRow(day=NOON.date(), user_id=USER.id, key_id=API_KEY.id, requests=250, units=18_000, seen_datetime=NOON)
