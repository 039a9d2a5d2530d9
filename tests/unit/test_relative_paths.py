"""Relative paths in a configuration file are relative to its folder; those in variables, to the current folder."""

from pathlib import Path

import pytest

from mlapi.bootstrap import locate_data
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError
from tests.sample_settings import KEY, SALT, write


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not the folder of the configuration file."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The folder of the configuration file."""
    folder = tmp_path / "service"
    (folder / "data").mkdir(parents=True)
    return folder


def find_files(config: Path | str, environ: dict[str, str] | None = None) -> tuple[Path | None, str]:
    """Return the path of the database, if it is a file, and of the secrets."""
    files, secrets = locate_data(load_settings(environ={"MLAPI_CONFIG": str(config), **(environ or {})}))
    return files[0] if files else None, secrets.location


@pytest.mark.parametrize(
    ("content", "database"),
    [
        ("", "mlapi.db"),
        ("database: {url: sqlite:///users.db}", "users.db"),
        ("database: {url: sqlite:///./data/users.db}", "data/users.db"),
        ("database: {url: sqlite:///data/../users.db}", "users.db"),
        ("database: {url: sqlite+pysqlite:///data/users.db}", "data/users.db"),
    ],
)
@pytest.mark.usefixtures("current")
def test_database_and_secrets_are_found_beside_the_file(service: Path, content: str, database: str) -> None:
    config = write(service, content)
    file = service / database

    assert find_files(config) == (file, str(file.parent / "secrets.yml"))
    assert find_files("../service/config.yml") == (file, str(file.parent / "secrets.yml"))


@pytest.mark.usefixtures("current")
def test_path_argument_counts_like_the_variable(service: Path) -> None:
    settings = load_settings(write(service, "database: {url: sqlite:///users.db}"), {})

    assert settings.database.url == f"sqlite:///{service}/users.db"


def test_without_a_file_the_current_folder_counts(current: Path) -> None:
    assert find_files("") == (current / "mlapi.db", str(current / "secrets.yml"))


def test_url_in_a_variable_is_relative_to_the_current_folder(service: Path, current: Path) -> None:
    config = write(service, "database: {url: sqlite:///users.db}")

    found = find_files(config, {"MLAPI_DATABASE__URL": "sqlite:///own.db"})

    assert found == (current / "own.db", str(current / "secrets.yml"))


@pytest.mark.usefixtures("current")
def test_absolute_path_in_the_file_is_kept(service: Path, tmp_path: Path) -> None:
    config = write(service, f"database: {{url: 'sqlite:///{tmp_path}/users.db'}}")

    assert find_files(config) == (tmp_path / "users.db", str(tmp_path / "secrets.yml"))


def test_link_to_the_file_counts_instead_of_its_target(service: Path, current: Path) -> None:
    (current / "config.yml").symlink_to(write(service, "database: {url: sqlite:///users.db}"))

    assert find_files("config.yml") == (current / "users.db", str(current / "secrets.yml"))


@pytest.mark.parametrize(
    "content",
    [
        "database: {url: 'postgresql://db.example/users'}",
        "connection: {username: ada, password: secret, database: users}",
    ],
)
@pytest.mark.usefixtures("current")
def test_secrets_for_a_server_are_beside_the_file(service: Path, content: str) -> None:
    assert find_files(write(service, content)) == (None, str(service / "secrets.yml"))


@pytest.mark.usefixtures("current")
def test_certificates_of_a_server_are_relative_to_the_file(service: Path) -> None:
    url = "postgresql://db/users?sslmode=verify-full&sslrootcert=certs/ca%20b.pem&sslcert=/c.pem"

    settings = load_settings(write(service, f"database: {{url: '{url}'}}"), {})

    folder = str(service).replace("%", "%25")
    assert settings.database.url == url.replace("certs/ca", f"{folder}/certs/ca")
    url = "postgresql://db/users?sslrootcert=system"
    assert load_settings(write(service, f"database: {{url: '{url}'}}"), {}).database.url == url


@pytest.mark.parametrize(
    ("content", "name"), [("", "mlapi.db"), ("database: {url: sqlite:///data/users.db}", "data/users.db")]
)
def test_database_at_its_former_place_is_not_ignored(service: Path, current: Path, content: str, name: str) -> None:
    config = write(service, content)
    former = current / name
    former.parent.mkdir(exist_ok=True)
    former.touch()

    with pytest.raises(ConfigurationError) as exc_info:
        find_files(config)

    assert str(exc_info.value) == (
        f"{service / name} does not exist, but {former} does. Paths in {config} are relative to its folder: move the"
        " database and its secrets.yml there, or set database.url to the absolute path. For a new database, start"
        " mlapi in another folder"
    )
    (service / name).touch()
    assert find_files(config)[0] == service / name


def test_other_databases_in_the_current_folder_are_ignored(service: Path, current: Path) -> None:
    (current / "mlapi.db").touch()

    for content in (
        f"database: {{url: 'sqlite:///{service}/mlapi.db'}}",
        "database: {url: 'memory://'}",
        'database: {url: "sqlite:///a\\0b"}',
        f"database: {{url: 'sqlite:///{'a' * 300}'}}",
    ):
        load_settings(write(service, content), {})


def test_variable_with_the_absolute_path_ends_the_error(service: Path, current: Path) -> None:
    config = write(service, "")
    (current / "mlapi.db").touch()

    found, _ = find_files(config, {"MLAPI_DATABASE__URL": f"sqlite:///{service}/mlapi.db"})

    assert found == service / "mlapi.db"


def test_secrets_at_their_former_place_are_not_ignored(service: Path, current: Path) -> None:
    config = write(service, "database: {url: 'postgresql://db.example/users'}")
    (current / "secrets.yml").touch()

    with pytest.raises(ConfigurationError) as exc_info:
        find_files(config)

    assert str(exc_info.value) == (
        f"{service}/secrets.yml does not exist, but {current}/secrets.yml does: move it there, because the secrets"
        " belong beside the configuration file"
    )
    environ = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}
    assert find_files(config, environ)[1] == f"{service}/secrets.yml"


@pytest.mark.parametrize("content", ["", "database: {url: 'postgresql://db.example/users'}"])
def test_current_folder_may_have_been_deleted(service: Path, current: Path, content: str) -> None:
    config = write(service, content)
    current.rmdir()

    assert find_files(config)[1] == f"{service}/secrets.yml"


@pytest.mark.usefixtures("current")
def test_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "100%25 what? #1"
    folder.mkdir()

    for name, content in (("mlapi.db", ""), ("users.db", "database: {url: sqlite:///users.db}")):
        assert find_files(write(folder, content))[0] == folder / name
