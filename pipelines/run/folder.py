"""A run's folder on any pyarrow.fs file system, and its journal.

A file is written aside and renamed, so it is whole or absent. On an object store it is put, which
is the same. The journal gets one line per finished stage with the size and hash of each file it
left, and a digest of all that the stages before it left. A stage is not run again if both still
match. Large files are written by workers, and read only where they are needed: of those, sizes are
compared alone, and who reads one compares its hash.

Lines are appended to a file on a disk. An object store can't append: there a file of lines is cut
into parts, NAME.jsonl, NAME.000002.jsonl, ..., and only the last is written again with each line.
Each object of `RunFolder` begins a part of its own.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from daal.errors import ConfigError, StorageError, first_line

Entry: TypeAlias = dict[str, Any]  # size and sha256 of a file
Entries = dict[str, Entry]  # of a stage's files, by name
Contents = Mapping[str, bytes | pa.Buffer | Entry]  # of files, by name; an entry if it is written
JOURNAL = "journal.jsonl"
LOCK = ".lock"
PART_BYTES = 16 * 1024  # of a file of lines on an object store; a line has some 350 bytes
NUM_READERS = 8
OBJECT_STORES = {"s3", "gcs"}  # by pyarrow's name; what is put there is whole or absent

_ONE_AT_A_TIME = threading.Lock()  # the driver's thread and the one that collects events append


class RunFolder:
    """Files by name relative to the run's folder; one object for one pass through its stages."""

    def __init__(self, uri: str, create: bool = True) -> None:
        self.uri = uri
        if urlsplit(uri).username:
            raise ConfigError(
                "out= has a login in it, which messages and job lists would show; leave it to the "
                "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's role."
            )
        try:
            if "://" in uri:
                self.filesystem, self.base = fs.FileSystem.from_uri(uri)
            else:
                self.filesystem, self.base = fs.LocalFileSystem(), str(Path(uri).absolute())
            if create:
                self.filesystem.create_dir(self.base, recursive=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"out={uri} can't be used as a run folder ({str(error).rstrip('.')}); give a path, "
                "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."
            ) from error
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        self.inputs = ""  # digest of what the stages so far have left
        # The part of each file of lines that the next line goes to, and on an object store what
        # this part holds.
        self._last_parts: dict[str, tuple[str, bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs of it: the place, and nothing of the journal."""
        state = {name: value for name, value in vars(self).items() if name != "_finished"}
        return state | {"_last_parts": {}}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Inside, no other process may work on this run. Object stores have no such lock.

        The lock ends with its process, however that ends.

        Raises:
            StorageError: another process has it.
        """
        if not self.is_local:
            yield
            return
        with self._storage(LOCK, 0):
            lock = open(self.path(LOCK), "ab")  # noqa: SIM115  closed below, with the lock
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(
                    f"{self.uri} is in use by another daal: wait for it to end or stop it, or "
                    "choose another out=."
                ) from None
            yield

    def path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def exists(self, name: str) -> bool:
        with self._storage(name):
            return bool(self.filesystem.get_file_info(self.path(name)).type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        with self._storage(name), self.filesystem.open_input_file(self.path(name)) as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        target = self.path(name)
        aside = f"{target}.partial"
        with self._storage(name, len(data)):
            if self.filesystem.type_name in OBJECT_STORES:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(data)
                return
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            try:
                with self.filesystem.open_output_stream(aside) as stream:
                    stream.write(data)
                self.filesystem.move(aside, target)
            except OSError:
                with suppress(OSError):  # room for others
                    self.filesystem.delete_file(aside)
                raise

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line of JSON to a file of lines. The line is stored when this returns."""
        data = (json.dumps(line) + "\n").encode()
        with _ONE_AT_A_TIME:
            part, held = self._last_parts.get(name) or (self._first_part(name), b"")
            if self.is_local:
                with self._storage(part, len(data)), open(self.path(part), "ab+") as file:
                    if file.tell():
                        file.seek(-1, os.SEEK_END)
                        if file.read(1) != b"\n":  # a crash cut the last line off
                            data = b"\n" + data
                    file.write(data)
            else:
                if len(held) >= PART_BYTES:
                    part, held = _part_after(name, part), b""
                held += data
                self.write(part, held)
            self._last_parts[name] = part, held

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Lines of JSON, but for what a crash cut off; none if there is no such file."""
        with ThreadPoolExecutor(NUM_READERS) as pool:
            contents = list(pool.map(self.read, self._parts(name)))
        lines = []
        for text in (line for content in contents for line in content.decode().splitlines()):
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return lines

    def _parts(self, name: str) -> list[str]:
        """The parts of a file of lines in order; none if there is no file."""
        stem, suffix = os.path.splitext(name)
        pattern = re.compile(rf"{re.escape(stem)}(\.\d{{6}})?{re.escape(suffix)}")
        with self._storage(name):
            found = self.filesystem.get_file_info(fs.FileSelector(self.base, allow_not_found=True))
        names = (info.base_name for info in found if info.type == fs.FileType.File)
        return sorted(filter(pattern.fullmatch, names), key=lambda part: (part != name, part))

    def _first_part(self, name: str) -> str:
        """Where this object's first line goes: to the last part, or to a new one."""
        parts = self._parts(name)
        if not parts:
            return name
        return parts[-1] if self.is_local else _part_after(name, parts[-1])

    def delete_file(self, name: str) -> None:
        """Delete a file, and its folder in this one if that is empty then."""
        with self._storage(name, 0):
            self.filesystem.delete_file(self.path(name))
        if self.is_local and (folder := os.path.dirname(name)):
            with suppress(OSError):
                os.rmdir(self.path(folder))

    def delete_folder(self, name: str) -> None:
        if self.filesystem.get_file_info(self.path(name)).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))

    # The journal

    def once(
        self,
        stage: str,
        files: Sequence[str],
        make: Callable[[], Contents],
        leads_on: bool = True,
        made_on: Mapping[str, Any] | None = None,
        reads: bool = True,
    ) -> dict[str, bytes]:
        """What a stage left in `files`; it is run if they aren't whole or others led to them.

        `make` returns their content. Stages are asked for in the order of the run; nothing
        follows from one that doesn't lead on. `made_on` is written into the journal's line.
        Nothing is returned of files that workers write (`reads=False`), and of those that were
        dropped; `restore` makes them again.
        """
        found = self._whole(stage, files, reads)
        if found is None:
            about = {**(made_on or {}), "inputs": self.inputs}
            found = self._make(stage, make, about)
        entries, contents = found
        if leads_on:
            hashes = "".join(entries[name]["sha256"] for name in sorted(entries))
            self.inputs = _sha256((self.inputs + hashes).encode())
        return contents

    def drop(self, stage: str, said_as: str) -> None:
        """Delete the files of a finished stage, which nothing needs any more. The journal says so
        in a line of the stage `said_as`, and still has their hashes."""
        if self._finished[stage].get("dropped"):
            return
        self._finish({"stage": said_as, "seconds": 0, "files": {}, "drops": stage})
        for name in self._finished[stage]["files"]:
            self.delete_file(name)

    def left(self, stage: str) -> Entries:
        """The files of a finished stage, whether they were dropped or not; {} of any other."""
        files: Entries = self._finished.get(stage, {}).get("files", {})
        return files

    def restore(self, stage: str, make: Callable[[], Contents]) -> None:
        """Make the files of a stage again if they were dropped: a later stage has to be repeated.

        Raises:
            StorageError: they differ from those that were dropped, as with other workers.
        """
        line = self._finished[stage]
        if not line.get("dropped"):
            return
        entries, _ = self._make(stage, make, {"inputs": line["inputs"]})
        if entries != line["files"]:
            raise StorageError(
                f"{stage} was made again, and differs from what later stages of {self.uri} were "
                "made from (by other workers or another machine); the same command repeats those."
            )

    def _make(
        self,
        stage: str,
        make: Callable[[], Contents],
        about: Mapping[str, Any],
    ) -> tuple[Entries, dict[str, bytes]]:
        started = time.time()
        entries: Entries = {}
        contents: dict[str, bytes] = {}
        for name, made in make().items():
            if isinstance(made, dict):
                entries[name] = made
                continue
            self.write(name, made)
            entries[name] = entry_of(made)
            contents[name] = bytes(made)
        line = {"stage": stage, "started": started, "seconds": round(time.time() - started, 3)}
        before = self.left(stage)
        self._finish({**line, **about, "files": entries})
        for name in before.keys() - entries.keys():
            if self.exists(name):
                self.delete_file(name)
        return entries, contents

    def adopt(self, other: "RunFolder") -> None:
        """Take over the finished stages of another run that this one doesn't have yet."""
        have = {line["stage"] for line in self.journal()}
        for line in other.journal():
            if line["stage"] not in have:
                for name in line["files"]:
                    self.write(name, other.read(name))
                self._finish(line)

    def journal(self) -> list[dict[str, Any]]:
        """Finished stages in order."""
        return self.lines(JOURNAL)

    @cached_property
    def _finished(self) -> dict[str, dict[str, Any]]:
        """The last line of each stage, with `dropped` where its files were deleted on purpose."""
        finished: dict[str, dict[str, Any]] = {}
        for line in self.journal():  # read once: this object alone adds to it
            _note(finished, line)
        return finished

    def _finish(self, line: dict[str, Any]) -> None:
        self.append(JOURNAL, line)
        _note(self._finished, line)

    def _whole(
        self, stage: str, files: Sequence[str], reads: bool
    ) -> tuple[Entries, dict[str, bytes]] | None:
        found = self._finished.get(stage)
        if found is None or found.get("inputs") != self.inputs or set(found["files"]) != set(files):
            return None
        if found.get("dropped"):
            return found["files"], {}
        contents = {}
        with self._storage(stage):
            there = self.filesystem.get_file_info([self.path(name) for name in found["files"]])
        for info, (name, expected) in zip(there, found["files"].items(), strict=True):
            if info.type != fs.FileType.File or info.size != expected["size"]:
                return None
            if reads:
                contents[name] = self.read(name)
                if entry_of(contents[name]) != expected:
                    return None
        return found["files"], contents

    @contextmanager
    def _storage(self, name: str, need: int | None = None) -> Iterator[None]:
        """Say of an OSError which file it is about, and what to do."""
        try:
            yield
        except OSError as error:
            path, done = self.path(name), "read" if need is None else "written"
            what = f"{path} can't be {done}: {first_line(error)}"
            remedy = "check the storage and its permissions"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = f"{path} can't be written: the disk is full ({need or 0:,} bytes needed)"
                remedy = "make room"
            raise StorageError(
                f"{what}; {remedy}, and the same command continues: finished stages are kept."
            ) from error


def _note(finished: dict[str, dict[str, Any]], line: dict[str, Any]) -> None:
    finished[line["stage"]] = line
    if (dropped := line.get("drops")) in finished:
        finished[dropped]["dropped"] = True


def entry_of(data: bytes | pa.Buffer) -> Entry:
    return {"size": len(data), "sha256": _sha256(data)}


def _sha256(data: bytes | pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def _part_after(name: str, part: str) -> str:
    """The name of the part of `name` that follows `part`; the first is `name` itself."""
    stem, suffix = os.path.splitext(name)
    number = 1 if part == name else int(os.path.splitext(part)[0].rpartition(".")[2])
    return f"{stem}.{number + 1:06d}{suffix}"
