"""A layer under the files of SQLite: it records what is written and made durable, or refuses as a bad disk does.

SQLite reaches its files through a table of functions, the VFS. Ours is the default one of the library that the module
`sqlite3` is linked to, with some of its functions wrapped through ctypes: no compiler is needed. What Python writes
itself, a file of secrets, is seen by `os`.
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

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

Call = Literal["open", "read", "write", "truncate", "sync", "delete", "folder"]

# SQLite, "Result and Error Codes": what its VFS for Unix makes of ENOSPC, EIO and EROFS
_OK, _FULL, _CANTOPEN = 0, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN
_FAILED: dict[Call, int] = {
    "read": 10 | 1 << 8,
    "write": 10 | 3 << 8,
    "sync": 10 | 4 << 8,
    "truncate": 10 | 6 << 8,
    "delete": 10 | 10 << 8,
}
_READONLY, _READWRITE, _CREATE = 1, 2, 4


class Layer:
    """Told of each call before and after it is done."""

    calls: frozenset[Call] = frozenset({"open", "write", "truncate", "sync", "delete", "folder"})

    def before(self, call: Call, path: Path) -> int:
        """Return 0, or the error of SQLite that the call shall end with instead of being done."""
        raise NotImplementedError

    def after(self, call: Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
        """It was done. A truncation has its new size as offset."""


# --- the VFS, as sqlite3.h of 3.40 has it; later versions only add to its end

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_SetSystemCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetSystemCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OpenFolder = CFUNCTYPE(c_int, c_char_p, c_void_p)
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


def missing() -> str | None:
    """Why there can be no layer under this Python's SQLite, or None."""
    try:
        vfs = _default_vfs(_library())
    except (AttributeError, OSError, ValueError) as error:
        return f"this Python has its SQLite where ctypes does not reach it: {error}"
    return None if vfs.version >= 3 else "the VFS of this SQLite is older than version 3"


def _library() -> ctypes.CDLL:
    """The very library that `sqlite3` uses; built into Python itself it is among the symbols of the process."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = c_void_p
    library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
    library.sqlite3_vfs_unregister.argtypes = [c_void_p]
    return library


def _default_vfs(library: ctypes.CDLL) -> _Vfs:
    return _Vfs.from_address(library.sqlite3_vfs_find(None))


_kept: list[object] = []
"""Connections that were made under a layer use its functions until they are closed."""


class UnderSqlite:
    """Puts a layer under all files that SQLite opens while this is entered."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._library = _library()
        self._original = _default_vfs(self._library)
        self._files: dict[int, Path] = {}
        """By the address of what SQLite knows an open file by."""
        self._originals: dict[int, _Methods] = {}
        self._in_folder = threading.local()
        self._vfs = _Vfs.from_buffer_copy(self._original)
        self._vfs.name = b"mlapi-layer"
        self._vfs.open = _Open(self._open)
        self._vfs.delete = _Delete(self._delete)
        self._folder_opened = _OpenFolder(self._open_folder)
        self._really_open_folder = _OpenFolder(
            self._original.get_system_call(ctypes.addressof(self._original), b"openDirectory") or 0
        )
        self._methods: dict[int, _Methods] = {}
        """Ours, by the address of those that they take the place of."""
        _kept.append(self)

    def __enter__(self) -> None:
        assert self._set_open_folder(ctypes.cast(self._folder_opened, c_void_p)) == _OK
        self._library.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1)

    def __exit__(self, *_error: object) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.addressof(self._vfs))
        self._library.sqlite3_vfs_register(ctypes.addressof(self._original), 1)
        self._set_open_folder(None)

    def _set_open_folder(self, function: c_void_p | None) -> int:
        return int(self._original.set_system_call(ctypes.addressof(self._original), b"openDirectory", function))

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = None if name is None else Path(os.fsdecode(ctypes.string_at(name)))
        if path is not None:  # else a temporary file, which nobody misses
            refused = self._layer.before("open", path)
            if refused == _READONLY and path.exists():
                flags = flags & ~(_READWRITE | _CREATE) | _READONLY
            elif refused:
                return _CANTOPEN
        result = int(self._original.open(ctypes.addressof(self._original), name, file, flags, out))
        self._files.pop(file, None)
        if result == _OK and path is not None:
            self._files[file] = path
            self._layer.after("open", path)
            methods = c_void_p.from_address(file)  # what an open file begins with
            assert methods.value is not None
            if methods.value not in self._methods:
                self._originals[methods.value] = _Methods.from_address(methods.value)
                self._methods[methods.value] = self._around(self._originals[methods.value])
            methods.value = ctypes.addressof(self._methods[methods.value])
        return result

    def _around(self, methods: _Methods) -> _Methods:
        ours = _Methods.from_buffer_copy(methods)
        if "read" in self._layer.calls:
            ours.read = _Transfer(partial(self._read, methods))
        ours.write = _Transfer(partial(self._write, methods))
        ours.truncate = _Truncate(partial(self._truncate, methods))
        ours.sync = _Sync(partial(self._sync, methods))
        return ours

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
        self._in_folder.was_opened = False
        result = self._layer.before("sync", path) or int(methods.sync(file, flags))
        if result == _OK:
            self._layer.after("sync", path)
            self._tell_of_folder(path)
        return result

    def _delete(self, _vfs: int, name: bytes, sync_folder: int) -> int:
        path = Path(os.fsdecode(name))
        self._in_folder.was_opened = False
        result = self._layer.before("delete", path) or int(
            self._original.delete(ctypes.addressof(self._original), name, sync_folder)
        )
        if result == _OK:
            self._layer.after("delete", path)
            self._layer.before("folder", path.parent)  # which is synced after the file is gone
            self._tell_of_folder(path)
        return result

    def _tell_of_folder(self, path: Path) -> None:
        """Its names are durable if it was opened: SQLite opens it for that, and for nothing else."""
        if self._in_folder.was_opened:
            self._layer.after("folder", path.parent)

    def _open_folder(self, name: bytes, descriptor: int) -> int:
        self._in_folder.was_opened = True
        return int(self._really_open_folder(name, descriptor))


# --- recording, for power that fails


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
    """What was written to a file before event ``upto`` is on the disk."""

    file: int
    upto: int


@attrs.frozen
class SyncFailed:
    """It is not on the disk, or some of it is; and the system takes all of it for written, and tries no more."""

    file: int
    upto: int


@attrs.frozen
class Named:
    """One change to the names in the folder, done whole or not at all; None is no file."""

    names: dict[str, int | None]


@attrs.frozen
class FolderSynced:
    upto: int


@attrs.frozen
class Marked:
    """Something that whoever uses the disk wants to know the place of."""

    mark: Any


Event = Written | Truncated | Synced | SyncFailed | Named | FolderSynced | Marked


class Recorder(Layer):
    """All that happens to the files of one folder, in order. Indexes of SQLite's shared memory are not on any disk."""

    def __init__(self, folder: Path, *, sync_fails: Callable[[], bool] = lambda: False) -> None:
        self.folder = folder.resolve()
        self._sync_fails = sync_fails
        self.events: list[Event] = []
        self.first = 0
        """The place of the first event that was recorded; before it is what was there."""
        self._names: dict[str, int] = {}
        self._count = 0
        self._lock = threading.RLock()
        self._began = threading.local()

    def mark(self, mark: object) -> None:
        with self._lock:
            self.events.append(Marked(mark))

    def before(self, call: Call, path: Path) -> int:
        if call in {"sync", "folder"}:
            setattr(self._began, call, len(self.events))
        if call == "sync" and self._sync_fails():
            with self._lock:
                self.events.append(SyncFailed(self._names[path.name], self._began.sync))
            return _FAILED["sync"]
        return _OK

    def after(self, call: Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
        with self._lock:
            if call == "folder":
                self.events.append(FolderSynced(self._began.folder))
            elif call == "open":
                self._made(path)
            elif call == "delete":
                self._named({path.name: None})
            elif call == "write":
                self.events.append(Written(self._names[path.name], offset, data))
            elif call == "truncate":
                self.events.append(Truncated(self._names[path.name], offset))
            elif path.name in self._names:
                self.events.append(Synced(self._names[path.name], self._began.sync))

    def _made(self, path: Path) -> None:
        if path.name not in self._names:
            self._count += 1
            self._named({path.name: self._count})

    def _named(self, names: dict[str, int | None]) -> None:
        self.events.append(Named(names))
        for name, file in names.items():
            self._names.pop(name, None)
            if file is not None:
                self._names[name] = file

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what SQLite and `os` do to the folder. What is in it already is durable."""
        for path in sorted(self.folder.iterdir()):
            if not path.name.endswith("-shm"):
                self._made(path)
                self._written(path)
        self.events.append(FolderSynced(len(self.events)))
        self.first = len(self.events)
        originals = {name: getattr(os, name) for name in ("open", "fsync", "link", "replace", "unlink")}
        for name, original in originals.items():
            setattr(os, name, partial(getattr(self, f"_{name}"), original))
        try:
            with UnderSqlite(self):
                yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _open(self, original: Callable[..., int], path: Any, flags: int, *more: Any, **names: Any) -> int:
        descriptor = original(path, flags, *more, **names)
        if flags & os.O_CREAT and self._has(path):
            with self._lock:
                self._made(Path(path))
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
                    self._written(path)

    def _link(self, original: Callable[[Any, Any], None], old: Any, new: Any) -> None:
        original(old, new)
        if self._has(new):
            with self._lock:
                self._named({Path(new).name: self._names[Path(old).name]})

    def _replace(self, original: Callable[[Any, Any], None], old: Any, new: Any) -> None:
        original(old, new)
        if self._has(new):
            with self._lock:
                self._named({Path(old).name: None, Path(new).name: self._names[Path(old).name]})

    def _unlink(self, original: Callable[..., None], path: Any, *more: Any, **names: Any) -> None:
        original(path, *more, **names)
        if self._has(path):
            with self._lock:
                self._named({Path(path).name: None})

    def _has(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).parent.resolve() == self.folder

    def _written(self, path: Path) -> None:
        """All of a file is durable."""
        self.events.append(Written(self._names[path.name], 0, path.read_bytes()))
        self.events.append(Synced(self._names[path.name], len(self.events)))

    def before_folder_sync(self) -> None:
        """Called before Python itself makes the names in a folder durable, for who does something just then."""


@attrs.define
class _File:
    durable: bytearray = attrs.field(factory=bytearray)
    pending: list[tuple[int, Written | Truncated]] = attrs.field(factory=list)


class Disk:
    """What is on a disk after so many events, and what may be."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._files: dict[int, _File] = {}
        self._names: dict[str, int | None] = {}
        self._named: list[tuple[int, Named]] = []
        self.place = 0
        self.marks: list[Any] = []

    def run(self, place: int) -> None:
        """Go on to the place before an event."""
        while self.place < place:
            event = self._events[self.place]
            if isinstance(event, Written | Truncated):
                self._files.setdefault(event.file, _File()).pending.append((self.place, event))
            elif isinstance(event, Synced | SyncFailed):
                file, done = self._files.setdefault(event.file, _File()), random.Random(self.place)
                for number, change in file.pending:
                    if number < event.upto and (isinstance(event, Synced) or done.random() < 0.3):
                        _apply(file.durable, change)
                file.pending = [pending for pending in file.pending if pending[0] >= event.upto]
            elif isinstance(event, Named):
                self._named.append((self.place, event))
            elif isinstance(event, FolderSynced):
                for number, named in self._named:
                    if number < event.upto:
                        self._names.update(named.names)
                self._named = [pending for pending in self._named if pending[0] >= event.upto]
            else:
                self.marks.append(event.mark)
            self.place += 1

    def after_power_loss(self, chance: random.Random) -> dict[str, bytes]:
        """Return the files of one state that power lost here may leave: of what was not made durable, any part."""
        share, share_of_names = chance.choice([0, 0.2, 0.5, 0.8, 1]), chance.choice([0, 0.5, 1])
        names = dict(self._names)
        for _, named in self._named:
            if chance.random() < share_of_names:
                names.update(named.names)
        return {name: self._content(file, chance, share) for name, file in names.items() if file is not None}

    def _content(self, number: int, chance: random.Random, share: float) -> bytes:
        file = self._files.get(number, _File())
        content = bytearray(file.durable)
        for _, change in file.pending:
            kept = chance.random()
            if kept < share:
                _apply(content, change, chance)
            elif isinstance(change, Written) and kept < share + 0.2:
                for part in _sectors(change):
                    if chance.random() < 0.5:
                        _apply(content, part, chance)
        return bytes(content)


def _apply(content: bytearray, change: Written | Truncated, chance: random.Random | None = None) -> None:
    end = change.size if isinstance(change, Truncated) else change.offset
    if len(content) < end:  # never written: zeros, or whatever was there
        gap = end - len(content)
        content.extend(bytes(gap) if chance is None or chance.random() < 0.5 else chance.randbytes(gap))
    if isinstance(change, Truncated):
        del content[end:]
    else:
        content[end : end + len(change.data)] = change.data


def _sectors(change: Written) -> Iterator[Written]:
    at, end = change.offset, change.offset + len(change.data)
    while at < end:
        until = min(end, (at // SECTOR + 1) * SECTOR)
        yield Written(change.file, at, change.data[at - change.offset : until - change.offset])
        at = until


# --- faults, for a server


class Faults(Layer):
    """Refuses as a disk at fault does, while a file says with which fault: full, read-only, fsync, read or hanging."""

    calls = frozenset({"open", "read", "write", "truncate", "sync", "delete", "folder"})

    def __init__(self, switch: Path) -> None:
        self._switch = str(switch)

    def before(self, call: Call, path: Path) -> int:
        try:
            with open(self._switch, encoding="utf-8") as stream:  # noqa: PTH123 - for every read of a page
                fault = stream.read()
        except FileNotFoundError:
            return _OK
        if fault == "full" and call == "write":
            return _FULL
        if fault == "read-only":
            return _READONLY if call == "open" else _FAILED[call] if call in {"write", "truncate", "delete"} else _OK
        if fault == "hanging" and call == "sync":
            while os.path.exists(self._switch):  # noqa: PTH110 - as above
                time.sleep(0.01)
            return _OK
        return _FAILED[call] if fault in {"read", "fsync"} and call == fault.removeprefix("f") else _OK


SWITCH = "fault"
"""Name of the file in the server's folder."""


def faulty_app() -> Starlette:
    """The service on a disk that can be at fault: ``uvicorn --factory``."""
    from mlapi.entrypoints.http.application import create_app  # noqa: PLC0415 - the layer is beneath first

    UnderSqlite(Faults(Path.cwd() / SWITCH)).__enter__()
    return create_app()
