"""Write files atomically: a reader sees either the old or the new content, even after a crash."""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ABANDONED_DRAFT_SECONDS = 60.0
"""Writing takes milliseconds, so a temporary file older than this was left behind by a killed process."""
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_NO_FOLDER_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_MARKER_TIMEOUT_SECONDS = 5.0
_MARKER_POLL_SECONDS = 0.01
_DRAFT_ENDINGS = ("", "-journal", "-wal", "-shm")
"""The file itself, and the files that SQLite keeps beside it."""
_DRAFT_SUFFIX = re.compile(rf"[0-9a-f]{{16}}({'|'.join(_DRAFT_ENDINGS)})")
_DRAFT_NAME = re.compile(rf"\.(.+)\.{_DRAFT_SUFFIX.pattern}")


@contextmanager
def atomic_write(file: Path, *, replace: bool, like: os.stat_result | None = None) -> Iterator[TextIO]:
    """Yield a UTF-8 stream for the new content of ``file``, which is stored when the block ends without an error.

    The content is written to a temporary file in the same folder and flushed to disk. The temporary file never
    outlives the block. See `publish` for the arguments and errors.
    """
    with drafting(file) as draft:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        publish(draft, file, replace=replace, like=like)


@contextmanager
def drafting(file: Path) -> Iterator[Path]:
    """Yield the path of a new, empty temporary file beside ``file``. It does not outlive the block.

    The same is true for files that SQLite keeps beside the temporary file.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield draft
    finally:
        for ending in _DRAFT_ENDINGS:
            draft.with_name(f"{draft.name}{ending}").unlink(missing_ok=True)


def publish(draft: Path, file: Path, *, replace: bool, like: os.stat_result | None = None) -> None:
    """Flush a complete temporary file from `drafting` to disk, and give it its final name.

    Args:
        draft: the temporary file.
        file: the final name. Resolve symbolic links first: otherwise, this function replaces the link instead of its
            target.
        replace: whether to replace an existing file.
        like: the owner, group and mode to give the file. By default, only the current account can access it.

    Raises:
        FileExistsError: if the file exists and ``replace`` is false.
        OSError: if the file cannot be written.
    """
    descriptor = os.open(draft, os.O_RDWR)
    try:
        if like is not None:
            os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if replace:
        draft.replace(file)
    else:
        _rename_to_new_file(draft, file)
    fsync_folder(file.parent)


def final_name(path: Path) -> Path:
    """Return the final name of a temporary file from `drafting`, or the path itself if it is a different file."""
    found = _DRAFT_NAME.fullmatch(path.name)
    return path if found is None else path.with_name(found[1])


def give_to_owner_of_folder(file: Path) -> None:
    """Give a file that root has created to the owner of its folder, because the service's account must open it."""
    if os.geteuid() == 0:  # pragma: no branch - tests run as root or as another account
        folder = file.parent.stat()
        os.chown(file, folder.st_uid, folder.st_gid)


def _rename_to_new_file(draft: Path, file: Path) -> None:
    """Rename a file to its final name, but fail if a file with this name exists.

    Raises:
        FileExistsError: if the file exists.
    """
    try:
        os.link(draft, file)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return
    # exFAT and many network file systems have no hard links. Let only one process rename its file at a time.
    marker = file.with_name(f".{file.name}.lock")
    deadline = time.monotonic() + _MARKER_TIMEOUT_SECONDS
    while True:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"{marker} was left behind by a killed process: delete it") from None
            time.sleep(_MARKER_POLL_SECONDS)
    try:
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file))
        draft.rename(file)
    finally:
        marker.unlink()


def remove_abandoned_drafts(file: Path) -> None:
    """Remove temporary files that killed processes left behind when writing ``file``: they contain the same secrets."""
    for path in file.parent.iterdir():
        name, _, suffix = path.name.rpartition(".")
        is_draft = name == f".{file.name}" and _DRAFT_SUFFIX.fullmatch(suffix) is not None
        # Another process may be creating the file right now without a lock, so leave recent temporary files alone.
        if is_draft and time.time() - path.lstat().st_mtime > ABANDONED_DRAFT_SECONDS:
            path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a file just created in it still exists after a crash.

    Some network file systems do not support this, because their server does it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)
