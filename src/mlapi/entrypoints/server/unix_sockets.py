"""Bind Unix sockets, and remove their files."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import attrs

from mlapi.domain.errors import ConfigurationError

_BOUND_SOCKETS = Path("/proc/net/unix")  # Linux


@attrs.frozen
class SocketFile:
    """The file of a Unix socket that this service has created."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another service has replaced it."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                Path(self.path).unlink()


def bind_path(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """Bind a Unix socket. Replace the file of a service that was killed, but never a file of another kind.

    Args:
        path: the path of the socket file.
        mode: the permissions of the file. A client must be able to write to it.

    Raises:
        ConfigurationError: if the path is in use or cannot be created.
    """
    path = str(Path(path).absolute())  # the process that removes the file may run in another folder
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        Path(path).chmod(mode)
        found = os.lstat(path)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ConfigurationError(f"cannot listen on {path}: {reason}; change --uds") from None
    except BaseException:
        listener.close()
        raise
    return listener, SocketFile(path, found.st_dev, found.st_ino)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that has exited.

    Raises:
        ConfigurationError: if the file is not a socket, or a process is using the socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"cannot listen on {path}: it exists and is not a socket; change --uds or remove it")
    if _accepts_connections(path) or _is_bound(path):
        raise ConfigurationError(
            f"cannot listen on {path}: another process is using this socket; change --uds or stop that process"
        )
    Path(path).unlink()


def _accepts_connections(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True


def _is_bound(path: str) -> bool:
    """Return whether a process has bound this path. It may not listen yet, so connecting to it is not enough."""
    with suppress(OSError):
        return any(line.endswith(f" {path}") for line in _BOUND_SOCKETS.read_text("utf-8", "replace").splitlines())
    return False
