"""A run's folder on any pyarrow.fs file system, and its journal.

A file is written aside and renamed, so it is whole or absent. The journal gets one line per
finished stage with the size and hash of each file it left, and a digest of all that the stages
before it left; a stage is not run again if both still match.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import yaml
from pyarrow import fs

from daal.config import Config
from daal.errors import ConfigError, StorageError, first_line
from daal.load_config import check_config, differences

Entries = dict[str, dict[str, Any]]  # size and sha256 of a stage's files, by name
JOURNAL = "journal.jsonl"
LOCK = ".lock"
MAY_CHANGE = {"out", "ray", "tracking", "report"}  # settings that change no result


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """Of a path or a URI, and where on it that is. Raises what pyarrow does if there is none."""
    if "://" in uri:
        return fs.FileSystem.from_uri(uri)
    return fs.LocalFileSystem(), str(Path(uri).absolute())


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
            self.filesystem, self.base = filesystem_of(uri)
            if create:
                self.filesystem.create_dir(self.base, recursive=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"out={uri} can't be used as a run folder ({str(error).rstrip('.')}); give a path, "
                "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."
            ) from error
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        self._inputs = ""  # digest of what the stages so far have left

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
        with self._storage(name), self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        target = self.path(name)
        aside = f"{target}.partial"
        with self._storage(name, len(data)):
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
        """Add one line of JSON. Object stores can't append: there the small file is rewritten."""
        data = (json.dumps(line) + "\n").encode()
        if self.is_local:
            with self._storage(name, len(data)), open(self.path(name), "ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a crash cut the last line off
                        data = b"\n" + data
                file.write(data)
        else:
            self.write(name, (self.read(name) if self.exists(name) else b"") + data)

    def delete_folder(self, name: str) -> None:
        if self.filesystem.get_file_info(self.path(name)).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))

    def keep_config(self, config: Config) -> None:
        """Write config.yaml, or check that this is the run that the folder belongs to.

        Raises:
            ConfigError: the folder has a run with another configuration; names each difference.
        """
        ours = config.model_dump(mode="json", exclude=MAY_CHANGE)
        if self.exists("config.yaml"):
            # Through the models: a field that is newer than the folder has its default.
            kept = check_config(yaml.safe_load(self.read("config.yaml")))
            theirs = kept.model_dump(mode="json", exclude=MAY_CHANGE)
            changes = [
                f"{key} was {before!r} and is {now!r}"
                for key, (now, before) in differences([ours, theirs]).items()
            ]
            if changes:
                raise ConfigError(
                    f"{self.uri} holds a run with another configuration ({'; '.join(changes)}); "
                    "continue it with the same settings, or choose another out=."
                )
        else:
            self.write("config.yaml", yaml.safe_dump(ours, sort_keys=False).encode())

    # The journal

    def once(
        self,
        stage: str,
        files: list[str],
        make: Callable[[], dict[str, bytes | pa.Buffer]],
        leads_on: bool = True,
    ) -> dict[str, bytes]:
        """What a stage left in `files`; it is run if they aren't whole or others led to them.

        `make` returns their content. Stages are asked for in the order of the run; nothing
        follows from one that doesn't lead on.
        """
        found = self._whole(stage, files)
        if found is None:
            started = time.time()
            made = make()
            entries: Entries = {}
            for name in files:
                self.write(name, made[name])
                entries[name] = {"size": len(made[name]), "sha256": _sha256(made[name])}
            line = {"stage": stage, "started": started, "seconds": round(time.time() - started, 3)}
            self.append(JOURNAL, {**line, "inputs": self._inputs, "files": entries})
            found = entries, {name: bytes(made[name]) for name in files}
        entries, contents = found
        if leads_on:
            hashes = "".join(entries[name]["sha256"] for name in sorted(entries))
            self._inputs = _sha256((self._inputs + hashes).encode())
        return contents

    def adopt(self, other: "RunFolder") -> None:
        """Take over the finished stages of another run that this one doesn't have yet."""
        have = {line["stage"] for line in self.journal()}
        for line in other.journal():
            if line["stage"] not in have:
                for name in line["files"]:
                    self.write(name, other.read(name))
                self.append(JOURNAL, line)

    def journal(self) -> list[dict[str, Any]]:
        """Finished stages in order."""
        return self.lines(JOURNAL)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What was appended to a file, if it is there; a line cut off by a crash is left out."""
        lines = []
        for text in self.read(name).decode().splitlines() if self.exists(name) else []:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return lines

    def _whole(self, stage: str, files: list[str]) -> tuple[Entries, dict[str, bytes]] | None:
        line = next((line for line in reversed(self.journal()) if line["stage"] == stage), None)
        if line is None or set(line["files"]) != set(files):
            return None
        if line.get("inputs", self._inputs) != self._inputs:  # older journals don't say
            return None
        contents = {}
        for name, expected in line["files"].items():
            if not self.exists(name):
                return None
            contents[name] = self.read(name)
            if {"size": len(contents[name]), "sha256": _sha256(contents[name])} != expected:
                return None
        return line["files"], contents

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
                f"{what}; {remedy}, and the same command goes on: finished stages are kept."
            ) from error


def _sha256(data: bytes | pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()
