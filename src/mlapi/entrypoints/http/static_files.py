"""Static files from this package, served with an ETag or under a URL that contains their digest.

Pages refer to them by relative URLs, so they work under any path and need no other host.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files

import attrs
from starlette.requests import Request
from starlette.responses import Response

IMMUTABLE = "public, max-age=31536000, immutable"  # one year: the digest in the URL changes with the content
REVALIDATE = "no-cache"  # clients may cache the file, but must revalidate it with its ETag: RFC 9111, 5.2.2.4
_DIGEST_CHARS = 32


@attrs.frozen
class StaticFile:
    """The content of a file, with its media type and a digest: the first half of its SHA-256."""

    content: bytes = attrs.field(repr=False)
    media_type: str
    digest: str = attrs.field(init=False)

    @digest.default
    def _digest_of_content(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:_DIGEST_CHARS]

    def response(self, request: Request, **headers: str) -> Response:
        """Return the file, or 304 if the client has this version (RFC 9110, 13.1.2).

        Args:
            request: the request, with its If-None-Match header.
            headers: additional response headers, with underscores instead of hyphens.
        """
        etag = f'"{self.digest}"'
        all_headers = {"etag": etag, **{name.replace("_", "-"): value for name, value in headers.items()}}
        known = request.headers.get(
            "if-none-match", ""
        )  # a list of quoted tags, so a search cannot match a part of one
        if etag in known or known.strip() == "*":
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=all_headers)
        return Response(self.content, headers=all_headers, media_type=self.media_type)


class StaticFiles:
    """Files under URLs of the form ``<digest>/<name>``, which clients may cache for a year.

    Args:
        sources: a mapping from names to the media type and the paths below ``mlapi/entrypoints``. The files at these
            paths are served as one.
    """

    def __init__(self, sources: Mapping[str, tuple[str, ...]]) -> None:
        self._sources = sources

    def url(self, name: str) -> str:
        """Return the URL of a file, relative to the path that serves the files."""
        return f"{self._files[name].digest}/{name}"

    def response(self, request: Request) -> Response:
        """Return the file for the path parameters ``digest`` and ``name``, or 404 for other versions and files."""
        file = self._files.get(request.path_params["name"])
        if file is None or file.digest != request.path_params["digest"]:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        return file.response(request, cache_control=IMMUTABLE)

    @cached_property
    def _files(self) -> Mapping[str, StaticFile]:
        folder = files("mlapi.entrypoints")
        return {
            name: StaticFile(b"".join(folder.joinpath(path).read_bytes() for path in paths), media_type)
            for name, (media_type, *paths) in self._sources.items()
        }
