"""A layer between SQLite and its files that records writes and fsyncs, or simulates a faulty disk.

SQLite accesses files through a table of functions, its VFS. The layer copies the default VFS of the library that the
module `sqlite3` uses and wraps some of its functions with ctypes, so it needs no compiler. Files that Python writes,
such as the secrets file, are recorded by patching functions in `os`.
"""

import _sqlite3
import ctypes
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, c_char_p, c_int, c_int64, c_void_p
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
from starlette.applications import Starlette

SECTOR_BYTES = 512
"""Size of the unit that a disk writes atomically."""

Call = Literal["open", "read", "write", "truncate", "sync", "delete", "folder"]

# Result codes of SQLite's Unix VFS for ENOSPC, EIO and EROFS: https://sqlite.org/rescode.html
_OK, _FULL, _CANTOPEN = 0, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN
_IO_ERRORS: dict[Call, int] = {
    "read": 10 | 1 << 8,
    "write": 10 | 3 << 8,
    "sync": 10 | 4 << 8,
    "truncate": 10 | 6 << 8,
    "delete": 10 | 10 << 8,
}
_READONLY, _READWRITE, _CREATE = 1, 2, 4


class Layer:
    """Hooks that are called before and after every VFS call."""

    calls: frozenset[Call] = frozenset({"open", "write", "truncate", "sync", "delete", "folder"})

    def before(self, call: Call, path: Path) -> int:
        """Return 0 to let the call proceed, or an SQLite error code to make it fail."""
        raise NotImplementedError

    def after(self, call: Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
        """Record a successful call. For a truncation, ``offset`` is the new size."""


# --- structures from sqlite3.h 3.40; later versions only append fields

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_SetSystemCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetSystemCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OpenDirectory = CFUNCTYPE(c_int, c_char_p, c_void_p)
_Transfer = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("version", c_int),
        ("size_of_file", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _Open),
        ("delete", _Delete),
        *[(f"unused_{number}", c_void_p) for number in range(11)],
        ("set_system_call", _SetSystemCall),
        ("get_system_call", _GetSystemCall),
        ("next_system_call", c_void_p),
    ]


class _Methods(ctypes.Structure):
    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", _Transfer),
        ("write", _Transfer),
        ("truncate", _Truncate),
        ("sync", _Sync),
        *[(f"unused_{number}", c_void_p) for number in range(13)],
    ]


def get_unsupported_reason() -> str | None:
    """Return why a layer cannot be used with this Python's SQLite, or None if it can."""
    try:
        vfs = _default_vfs(_library())
    except (AttributeError, OSError, ValueError) as error:
        return f"ctypes cannot reach the SQLite library of this Python: {error}"
    return None if vfs.version >= 3 else "the VFS of this SQLite is older than version 3"


def _library() -> ctypes.CDLL:
    """Load the library that `sqlite3` uses. If it is linked into Python, its symbols are in the process itself."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = c_void_p
    library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
    library.sqlite3_vfs_unregister.argtypes = [c_void_p]
    return library


def _default_vfs(library: ctypes.CDLL) -> _Vfs:
    return _Vfs.from_address(library.sqlite3_vfs_find(None))


_KEEP_ALIVE: list[object] = []
"""All layers ever created: they must stay in memory, because open connections may still call their functions."""


class SqliteLayer:
    """Installs a layer for all files that SQLite opens during the block."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._library = _library()
        self._original = _default_vfs(self._library)
        self._files: dict[int, Path] = {}
        """Paths of open files, by the address of SQLite's file object."""
        self._originals: dict[int, _Methods] = {}
        self._thread = threading.local()
        self._vfs = _Vfs.from_buffer_copy(self._original)
        self._vfs.name = b"mlapi-layer"
        self._vfs.open = _Open(self._open)
        self._vfs.delete = _Delete(self._delete)
        self._wrapped_open_directory = _OpenDirectory(self._open_directory)
        self._original_open_directory = _OpenDirectory(
            self._original.get_system_call(ctypes.addressof(self._original), b"openDirectory") or 0
        )
        self._methods: dict[int, _Methods] = {}
        """Wrapped methods, by the address of the originals."""
        _KEEP_ALIVE.append(self)

    def __enter__(self) -> None:
        assert self._set_open_directory(ctypes.cast(self._wrapped_open_directory, c_void_p)) == _OK
        self._library.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1)

    def __exit__(self, *_error: object) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.addressof(self._vfs))
        self._library.sqlite3_vfs_register(ctypes.addressof(self._original), 1)
        self._set_open_directory(None)

    def _set_open_directory(self, function: c_void_p | None) -> int:
        return int(self._original.set_system_call(ctypes.addressof(self._original), b"openDirectory", function))

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = None if name is None else Path(os.fsdecode(ctypes.string_at(name)))
        if path is not None:  # temporary files have no name and need no recording
            error = self._layer.before("open", path)
            if error == _READONLY and path.exists():
                flags = flags & ~(_READWRITE | _CREATE) | _READONLY
            elif error:
                return _CANTOPEN
        result = int(self._original.open(ctypes.addressof(self._original), name, file, flags, out))
        self._files.pop(file, None)
        if result == _OK and path is not None:
            self._files[file] = path
            self._layer.after("open", path)
            methods = c_void_p.from_address(file)  # the first field of SQLite's file object
            assert methods.value is not None
            if methods.value not in self._methods:
                self._originals[methods.value] = _Methods.from_address(methods.value)
                self._methods[methods.value] = self._wrap(self._originals[methods.value])
            methods.value = ctypes.addressof(self._methods[methods.value])
        return result

    def _wrap(self, methods: _Methods) -> _Methods:
        wrapped = _Methods.from_buffer_copy(methods)
        if "read" in self._layer.calls:
            wrapped.read = _Transfer(partial(self._read, methods))
        wrapped.write = _Transfer(partial(self._write, methods))
        wrapped.truncate = _Truncate(partial(self._truncate, methods))
        wrapped.sync = _Sync(partial(self._sync, methods))
        return wrapped

    def _read(self, methods: _Methods, file: int, *buffer: int) -> int:
        return self._layer.before("read", self._files[file]) or int(methods.read(file, *buffer))

    def _write(self, methods: _Methods, file: int, *buffer: int) -> int:
        address, length, offset = buffer
        path = self._files[file]
        result = self._layer.before("write", path) or int(methods.write(file, address, length, offset))
        if result == _OK:
            self._layer.after("write", path, offset, ctypes.string_at(address, length))
        return result

    def _truncate(self, methods: _Methods, file: int, size: int) -> int:
        path = self._files[file]
        result = self._layer.before("truncate", path) or int(methods.truncate(file, size))
        if result == _OK:
            self._layer.after("truncate", path, size)
        return result

    def _sync(self, methods: _Methods, file: int, flags: int) -> int:
        path = self._files[file]
        self._layer.before("folder", path.parent)
        self._thread.directory_was_opened = False
        result = self._layer.before("sync", path) or int(methods.sync(file, flags))
        if result == _OK:
            self._layer.after("sync", path)
            self._record_folder_sync(path)
        return result

    def _delete(self, _vfs: int, name: bytes, sync_folder: int) -> int:
        path = Path(os.fsdecode(name))
        self._thread.directory_was_opened = False
        result = self._layer.before("delete", path) or int(
            self._original.delete(ctypes.addressof(self._original), name, sync_folder)
        )
        if result == _OK:
            self._layer.after("delete", path)
            self._layer.before("folder", path.parent)  # the folder is synced after the file is deleted
            self._record_folder_sync(path)
        return result

    def _record_folder_sync(self, path: Path) -> None:
        """Record a folder sync if SQLite opened the folder: it opens folders only to sync them."""
        if self._thread.directory_was_opened:
            self._layer.after("folder", path.parent)

    def _open_directory(self, name: bytes, descriptor: int) -> int:
        self._thread.directory_was_opened = True
        return int(self._original_open_directory(name, descriptor))


# --- recorded events, to simulate power losses


@attrs.frozen
class Written:
    file: int
    offset: int
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Truncated:
    file: int
    size: int


@attrs.frozen
class Synced:
    """All writes to a file before event number ``upto`` are durable."""

    file: int
    upto: int


@attrs.frozen
class SyncFailed:
    """A failed fsync: only some writes are durable, but the kernel considers all of them written and does not retry."""

    file: int
    upto: int


@attrs.frozen
class Renamed:
    """An atomic change of file names in the folder. None deletes a name."""

    names: dict[str, int | None]


@attrs.frozen
class FolderSynced:
    upto: int


@attrs.frozen
class Marked:
    """A marker that a test adds to the log of events."""

    mark: Any


Event = Written | Truncated | Synced | SyncFailed | Renamed | FolderSynced | Marked


class Recorder(Layer):
    """Records all file events in one folder, in order, except SQLite's shared memory, which is not on disk."""

    def __init__(self, folder: Path, *, sync_fails: Callable[[], bool] = lambda: False) -> None:
        self.folder = folder.resolve()
        self._sync_fails = sync_fails
        self.events: list[Event] = []
        self.first = 0
        """Index of the first event after recording started. Earlier events describe files that already existed."""
        self._names: dict[str, int] = {}
        self._count = 0
        self._lock = threading.RLock()
        self._sync_began = threading.local()

    def mark(self, mark: object) -> None:
        with self._lock:
            self.events.append(Marked(mark))

    def before(self, call: Call, path: Path) -> int:
        if call in {"sync", "folder"}:
            setattr(self._sync_began, call, len(self.events))
        if call == "sync" and self._sync_fails():
            with self._lock:
                self.events.append(SyncFailed(self._names[path.name], self._sync_began.sync))
            return _IO_ERRORS["sync"]
        return _OK

    def after(self, call: Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
        with self._lock:
            if call == "folder":
                self.events.append(FolderSynced(self._sync_began.folder))
            elif call == "open":
                self._record_created(path)
            elif call == "delete":
                self._record_renaming({path.name: None})
            elif call == "write":
                self.events.append(Written(self._names[path.name], offset, data))
            elif call == "truncate":
                self.events.append(Truncated(self._names[path.name], offset))
            elif path.name in self._names:
                self.events.append(Synced(self._names[path.name], self._sync_began.sync))

    def _record_created(self, path: Path) -> None:
        if path.name not in self._names:
            self._count += 1
            self._record_renaming({path.name: self._count})

    def _record_renaming(self, names: dict[str, int | None]) -> None:
        self.events.append(Renamed(names))
        for name, file in names.items():
            self._names.pop(name, None)
            if file is not None:
                self._names[name] = file

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what SQLite and `os` do in the folder during the block. Existing files count as durable."""
        for path in sorted(self.folder.iterdir()):
            if not path.name.endswith("-shm"):
                self._record_created(path)
                self._record_durable(path)
        self.events.append(FolderSynced(len(self.events)))
        self.first = len(self.events)
        originals = {name: getattr(os, name) for name in ("open", "fsync", "link", "replace", "unlink")}
        for name, original in originals.items():
            setattr(os, name, partial(getattr(self, f"_{name}"), original))
        try:
            with SqliteLayer(self):
                yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _open(self, original: Callable[..., int], path: Any, flags: int, *more: Any, **names: Any) -> int:
        descriptor = original(path, flags, *more, **names)
        if flags & os.O_CREAT and self._contains(path):
            with self._lock:
                self._record_created(Path(path))
        return descriptor

    def _fsync(self, original: Callable[[int], None], descriptor: int) -> None:
        began, status = len(self.events), os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.before_folder_sync()
        original(descriptor)
        with self._lock:
            if os.path.samestat(status, self.folder.stat()):
                self.events.append(FolderSynced(began))
            for path in [self.folder / name for name in self._names]:
                if path.exists() and os.path.samestat(status, path.stat()):
                    self._record_durable(path)

    def _link(self, original: Callable[[Any, Any], None], old: Any, new: Any) -> None:
        original(old, new)
        if self._contains(new):
            with self._lock:
                self._record_renaming({Path(new).name: self._names[Path(old).name]})

    def _replace(self, original: Callable[[Any, Any], None], old: Any, new: Any) -> None:
        original(old, new)
        if self._contains(new):
            with self._lock:
                self._record_renaming({Path(old).name: None, Path(new).name: self._names[Path(old).name]})

    def _unlink(self, original: Callable[..., None], path: Any, *more: Any, **names: Any) -> None:
        original(path, *more, **names)
        if self._contains(path):
            with self._lock:
                self._record_renaming({Path(path).name: None})

    def _contains(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).parent.resolve() == self.folder

    def _record_durable(self, path: Path) -> None:
        """Record that the current content of a file is durable."""
        self.events.append(Written(self._names[path.name], 0, path.read_bytes()))
        self.events.append(Synced(self._names[path.name], len(self.events)))

    def before_folder_sync(self) -> None:
        """Do nothing. Tests replace this hook to act just before Python syncs the folder."""


@attrs.define
class _File:
    durable: bytearray = attrs.field(factory=bytearray)
    pending: list[tuple[int, Written | Truncated]] = attrs.field(factory=list)


class Disk:
    """The durable and pending content of a disk after a number of events."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._files: dict[int, _File] = {}
        self._names: dict[str, int | None] = {}
        self._pending_renames: list[tuple[int, Renamed]] = []
        self.position = 0
        self.marks: list[Any] = []

    def run(self, position: int) -> None:
        """Apply all events before this position."""
        while self.position < position:
            event = self._events[self.position]
            if isinstance(event, Written | Truncated):
                self._files.setdefault(event.file, _File()).pending.append((self.position, event))
            elif isinstance(event, Synced | SyncFailed):
                file, rng = self._files.setdefault(event.file, _File()), random.Random(self.position)
                for number, change in file.pending:
                    if number < event.upto and (isinstance(event, Synced) or rng.random() < 0.3):
                        _apply(file.durable, change)
                file.pending = [pending for pending in file.pending if pending[0] >= event.upto]
            elif isinstance(event, Renamed):
                self._pending_renames.append((self.position, event))
            elif isinstance(event, FolderSynced):
                for number, named in self._pending_renames:
                    if number < event.upto:
                        self._names.update(named.names)
                self._pending_renames = [pending for pending in self._pending_renames if pending[0] >= event.upto]
            else:
                self.marks.append(event.mark)
            self.position += 1

    def after_power_loss(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files after a power loss: all durable writes and a random subset of the others."""
        share, share_of_names = rng.choice([0, 0.2, 0.5, 0.8, 1]), rng.choice([0, 0.5, 1])
        names = dict(self._names)
        for _, named in self._pending_renames:
            if rng.random() < share_of_names:
                names.update(named.names)
        return {name: self._content(file, rng, share) for name, file in names.items() if file is not None}

    def _content(self, number: int, rng: random.Random, share: float) -> bytes:
        file = self._files.get(number, _File())
        content = bytearray(file.durable)
        for _, change in file.pending:
            draw = rng.random()
            if draw < share:
                _apply(content, change, rng)
            elif isinstance(change, Written) and draw < share + 0.2:
                for part in _sectors(change):
                    if rng.random() < 0.5:
                        _apply(content, part, rng)
        return bytes(content)


def _apply(content: bytearray, change: Written | Truncated, rng: random.Random | None = None) -> None:
    end = change.size if isinstance(change, Truncated) else change.offset
    if len(content) < end:  # the gap was never written: it contains zeros or old data
        gap = end - len(content)
        content.extend(bytes(gap) if rng is None or rng.random() < 0.5 else rng.randbytes(gap))
    if isinstance(change, Truncated):
        del content[end:]
    else:
        content[end : end + len(change.data)] = change.data


def _sectors(change: Written) -> Iterator[Written]:
    at, end = change.offset, change.offset + len(change.data)
    while at < end:
        until = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield Written(change.file, at, change.data[at - change.offset : until - change.offset])
        at = until


# --- faults for a running server


class FaultyDisk(Layer):
    """Simulates a fault while a switch file exists. The file names it: full, read-only, fsync, read or hanging."""

    calls = frozenset({"open", "read", "write", "truncate", "sync", "delete", "folder"})

    def __init__(self, switch: Path) -> None:
        self._switch = str(switch)

    def before(self, call: Call, path: Path) -> int:
        try:
            with open(self._switch, encoding="utf-8") as stream:  # noqa: PTH123 - faster: called for every page
                fault = stream.read()
        except FileNotFoundError:
            return _OK
        if fault == "full" and call == "write":
            return _FULL
        if fault == "read-only":
            return _READONLY if call == "open" else _IO_ERRORS[call] if call in {"write", "truncate", "delete"} else _OK
        if fault == "hanging" and call == "sync":
            while os.path.exists(self._switch):  # noqa: PTH110 - faster
                time.sleep(0.01)
            return _OK
        return _IO_ERRORS[call] if fault in {"read", "fsync"} and call == fault.removeprefix("f") else _OK


SWITCH = "fault"
"""Name of the switch file in the server's folder."""


def create_faulty_app() -> Starlette:
    """Create the application on a disk that tests can make faulty, for ``uvicorn --factory``."""
    from mlapi.entrypoints.http import create_app  # noqa: PLC0415 - this module must be loaded first

    SqliteLayer(FaultyDisk(Path.cwd() / SWITCH)).__enter__()
    return create_app()
