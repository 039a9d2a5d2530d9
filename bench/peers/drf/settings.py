"""The settings that `startproject` creates, reduced to what an API with three endpoints needs."""

import os
import secrets
from typing import Any
from urllib.parse import unquote, urlsplit


def database(text: str) -> dict[str, Any]:
    url = urlsplit(text)
    if url.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(url.path[1:]),
            "OPTIONS": {
                "timeout": 3,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL",
            },
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(url.path[1:]),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname or "",
        "PORT": str(url.port or ""),
        "OPTIONS": {"options": "-c synchronous_commit=on"},
    }


SECRET_KEY = secrets.token_urlsafe()
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "users"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"]
MIDDLEWARE: list[str] = []
USE_TZ = True
DATABASES = {"default": {**database(os.environ["PEER_DATABASE_URL"]), "CONN_MAX_AGE": None}}
if os.environ.get("PEER_HASH") == "cheap":
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}
