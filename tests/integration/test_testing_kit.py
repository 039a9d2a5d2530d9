"""Tests of `mlapi.testing`: its public names, fakes, fixtures, and error messages about missing packages."""

import importlib
import inspect
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import mlapi.testing
from mlapi import (
    Access,
    AccessExpiredError,
    AuditTrail,
    Clock,
    Extension,
    Guard,
    InvalidTokenError,
    PasswordCipher,
    RepositoryUnavailableError,
    TokenIssuer,
    UserDisabledError,
    UserRepository,
    Users,
)
from mlapi.domain.ports import LinkRepository
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.testing import (
    InMemoryTokens,
    InMemoryUserRepository,
    LoggedInUser,
    PlainCipher,
    SettableClock,
    UnavailableRepository,
    register_and_log_in,
)
from mlapi.testing.http import LOCAL_MODE

pytest_plugins = ["pytester", "mlapi.testing.fixtures"]

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
SUITES = {
    "AttemptLimiterContract": "attempts",
    "HttpContract": "http",
    "PasswordCipherContract": "cipher",
    "StorageContract": "storage",
    "TokenIssuerContract": "tokens",
    "UserRepositoryContract": "repository",
}

# --- names


def test_public_names_are_sorted_and_exist() -> None:
    assert sorted(mlapi.testing.__all__) == mlapi.testing.__all__
    assert [name for name in mlapi.testing.__all__ if not hasattr(mlapi.testing, name)] == []


@pytest.mark.parametrize(("name", "module"), SUITES.items())
def test_suite_is_loaded_from_its_module(name: str, module: str) -> None:
    suite = getattr(mlapi.testing, name)

    assert (suite.__module__, suite.__name__) == (f"mlapi.testing.{module}", name)


def test_http_suite_requires_a_client() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())

    with pytest.raises(NotImplementedError, match=r"override client\(\)"):
        mlapi.testing.HttpContract().client(users, LOCAL_MODE)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'mlapi\.testing' has no attribute 'Mock'$"):
        _ = mlapi.testing.Mock  # type: ignore[attr-defined]  # on purpose


@pytest.mark.parametrize(
    ("name", "missing"),
    [*((name, "pytest") for name in SUITES), ("HttpContract", "httpx2")],
)
def test_suite_error_names_the_missing_package(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.startswith("mlapi.testing.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(ModuleNotFoundError) as error_info:
        getattr(mlapi.testing, name)

    message = f"{name} needs {missing}, which is not installed: pip install 'mlapi-users[testing]'"
    assert (str(error_info.value), error_info.value.name) == (message, missing)


def test_other_import_errors_do_not_suggest_installing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlapi.testing.http", raising=False)
    monkeypatch.setitem(sys.modules, "mlapi.entrypoints.admin", None)

    with pytest.raises(ModuleNotFoundError, match=r"^import of mlapi\.entrypoints\.admin halted"):
        _ = mlapi.testing.HttpContract


def test_fakes_work_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest")

    reloaded = importlib.reload(mlapi.testing)

    assert reloaded.InMemoryUserRepository is InMemoryUserRepository


def test_failing_suite_shows_the_compared_values(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        from mlapi.domain.users import EncryptedPassword
        from mlapi.testing import PasswordCipherContract, PlainCipher

        class Saltless(PlainCipher):
            def encrypt(self, password):
                return EncryptedPassword("plain::" + password)

        class TestSaltless(PasswordCipherContract):
            @pytest.fixture
            def cipher(self):
                return Saltless()
    """)

    run = pytester.runpytest("-k", "same_password")

    run.stdout.re_match_lines([r"E +AssertionError: assert EncryptedPassword\(\) != EncryptedPassword\(\)"])


def test_failing_tests_of_every_suite_show_the_values() -> None:
    files = Path(mlapi.testing.__file__).parent.glob("*.py")
    suites = [
        importlib.import_module(f"mlapi.testing.{file.stem}")
        for file in files
        if re.search(r"^class \w+Contract\b", file.read_text("utf-8"), re.MULTILINE)
    ]

    assert len(suites) > 10
    assert [suite.__name__ for suite in suites if "@pytest_ar" not in vars(suite)] == []


# --- fakes


def test_fakes_implement_the_ports() -> None:
    repository: UserRepository = UnavailableRepository()
    trail: AuditTrail = repository.audit
    clock: Clock = SettableClock()
    cipher: PasswordCipher = PlainCipher()
    tokens: TokenIssuer = InMemoryTokens(clock=clock)

    assert None not in {repository, trail, clock, cipher, tokens}


@pytest.mark.parametrize(
    ("port", "fake"),
    [
        (UserRepository, UnavailableRepository()),
        (AuditTrail, UnavailableRepository.audit),
        (LinkRepository, UnavailableRepository.links),
    ],
)
def test_every_method_of_an_unavailable_fake_raises(port: type, fake: object) -> None:
    methods = [name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")]
    errors = []

    for name in methods:
        method = getattr(fake, name)
        parameters = inspect.signature(method).parameters.values()
        required = [parameter for parameter in parameters if parameter.default is parameter.empty]
        with pytest.raises(RepositoryUnavailableError) as error_info:
            method(
                *(1 for parameter in required if parameter.kind is not parameter.KEYWORD_ONLY),
                **{parameter.name: 1 for parameter in required if parameter.kind is parameter.KEYWORD_ONLY},
            )
        errors.append(error_info.value)

    assert errors == [RepositoryUnavailableError("simulated outage")] * len(methods)
    assert methods


def test_clock_returns_the_set_time_in_utc() -> None:
    clock = SettableClock(datetime.fromisoformat("2030-01-31T12:00:00+02:00"))
    times = [clock()]

    clock.now += HOUR
    times.append(clock())

    assert [time.isoformat() for time in times] == ["2030-01-31T10:00:00+00:00", "2030-01-31T11:00:00+00:00"]


def test_clock_rejects_a_naive_time() -> None:
    clock = SettableClock()

    with pytest.raises(ValueError, match="the time has no time zone: use an aware datetime"):
        clock.now = datetime(2030, 1, 31)  # noqa: DTZ001 - on purpose


# --- fixtures


async def whoami(request: Request) -> JSONResponse:
    return JSONResponse(request.user.username)


APP = Starlette(routes=[Route("/", whoami)])


def test_users_fixture_starts_empty_and_uses_the_clock(mlapi_users: Users, mlapi_clock: SettableClock) -> None:
    before = mlapi_users.list_page()

    ada = mlapi_users.register(username="ada", password="x", email="ada@example.com")

    assert before == []
    assert mlapi_users.list_page() == [ada]
    assert ada.created_datetime == mlapi_clock.now


def test_enabled_user_is_accepted_by_the_guard(
    mlapi_guard: Guard, mlapi_enabled_user: LoggedInUser, mlapi_users: Users
) -> None:
    assert mlapi_guard.check(mlapi_enabled_user.token) == mlapi_enabled_user.user == mlapi_users.find("enabled-user")


def test_disabled_user_is_rejected_by_the_guard(
    mlapi_guard: Guard, mlapi_disabled_user: LoggedInUser, mlapi_users: Users
) -> None:
    with pytest.raises(UserDisabledError) as error_info:
        mlapi_guard.check(mlapi_disabled_user.token)

    assert error_info.value == UserDisabledError(mlapi_disabled_user.user.id)
    assert mlapi_disabled_user.user == mlapi_users.find("disabled-user")


def test_expired_user_is_rejected_until_extended(
    mlapi_guard: Guard, mlapi_expired_user: LoggedInUser, mlapi_users: Users
) -> None:
    with pytest.raises(AccessExpiredError) as error_info:
        mlapi_guard.check(mlapi_expired_user.token)

    extended = mlapi_users.update(user_id=mlapi_expired_user.user.id, expires=Extension(hours=2))

    assert error_info.value == AccessExpiredError(mlapi_expired_user.user.id)
    assert mlapi_guard.check(mlapi_expired_user.token) == extended


def test_guarded_app_accepts_only_the_enabled_user(
    mlapi_guard: Guard, mlapi_enabled_user: LoggedInUser, mlapi_disabled_user: LoggedInUser, mlapi_clock: SettableClock
) -> None:
    client = TestClient(GuardMiddleware(APP, mlapi_guard))

    all_headers: list[dict[str, str]] = [mlapi_enabled_user.headers, mlapi_disabled_user.headers, {}]
    responses = [client.get("/", headers=headers) for headers in all_headers]
    mlapi_clock.now += HOUR
    expired = client.get("/", headers=mlapi_enabled_user.headers)

    assert [response.status_code for response in (*responses, expired)] == [200, 403, 401, 401]
    assert responses[0].json() == "enabled-user"


def test_api_key_expires_according_to_the_clock(
    mlapi_guard: Guard, mlapi_enabled_user: LoggedInUser, mlapi_users: Users, mlapi_clock: SettableClock
) -> None:
    _, secret = mlapi_users.add_api_key(
        user_id=mlapi_enabled_user.user.id, name="nightly job", expires_datetime=mlapi_clock.now + 2 * HOUR
    )

    seen = mlapi_guard.check(secret)
    mlapi_clock.now += 2 * HOUR

    assert seen == mlapi_enabled_user.user
    with pytest.raises(InvalidTokenError):
        mlapi_guard.check(secret)


def test_additional_users_can_be_registered_and_logged_in(mlapi_access: Access) -> None:
    grace, alan = register_and_log_in(mlapi_access, "grace"), register_and_log_in(mlapi_access, "alan")

    assert [mlapi_access.guard.check(logged_in.token) for logged_in in (grace, alan)] == [grace.user, alan.user]
    assert grace.headers == {"Authorization": f"Bearer {grace.token}"}


def test_repr_hides_the_token(mlapi_enabled_user: LoggedInUser) -> None:
    assert mlapi_enabled_user.token not in f"{mlapi_enabled_user!r} {mlapi_enabled_user}"


# --- docs/testing.md and docs/adapters.md


def test_test_files_in_the_documentation_pass(pytester: pytest.Pytester) -> None:
    pages = "".join((ROOT / "docs" / page).read_text("utf-8") for page in ("testing.md", "adapters.md"))
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    for name, text in files:
        (pytester.path / name).write_text(text, "utf-8")

    run = pytester.inline_run()

    passed, skipped, failed = run.listoutcomes()
    assert [name for name, _ in files] == ["conftest.py", "test_application.py", "test_limits.py", "test_adapter.py"]
    assert (skipped, failed) == ([], [])
    assert len(passed) > 70
