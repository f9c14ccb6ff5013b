"""A run's folder on any pyarrow.fs file system, and its journal.

A file is written aside and renamed, so it is whole or absent. The journal gets one line per
finished stage with the size and hash of each file it left; a stage whose files still match
is not run again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import yaml
from pyarrow import fs

from daal.config import Config
from daal.errors import ConfigError
from daal.load_config import check_config

T = TypeVar("T")
JOURNAL = "journal.jsonl"


class RunFolder:
    """Files by name relative to the run's folder."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            if "://" in uri:
                self.filesystem, self.base = fs.FileSystem.from_uri(uri)
            else:
                self.filesystem, self.base = fs.LocalFileSystem(), str(Path(uri).absolute())
            self.filesystem.create_dir(self.base, recursive=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"out={uri} can't be used as a run folder: {error}") from error
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(self.path(name)).type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        target = self.path(name)
        self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        aside = f"{target}.partial"
        with self.filesystem.open_output_stream(aside) as stream:
            stream.write(data)
        self.filesystem.move(aside, target)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line of JSON. Object stores can't append: there the small file is rewritten."""
        data = (json.dumps(line) + "\n").encode()
        if self.is_local:
            with open(self.path(name), "ab+") as file:
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
        ours = config.model_dump(mode="json", exclude={"out", "ray"})
        if self.exists("config.yaml"):
            # Through the models: a field that is newer than the folder has its default.
            kept = check_config(yaml.safe_load(self.read("config.yaml")))
            theirs = kept.model_dump(mode="json", exclude={"out", "ray"})
            changes = _differences(theirs, ours)
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
        read: Callable[[dict[str, bytes]], T],
    ) -> T:
        """What a stage left behind; the stage is run only if its files aren't whole.

        `make` returns the content of `files`; `read` turns their content into the result.
        """
        if (contents := self._whole(stage, files)) is not None:
            return read(contents)
        started = time.time()
        made = make()
        entries = {}
        for name in files:
            self.write(name, made[name])
            entries[name] = {"size": len(made[name]), "sha256": _sha256(made[name])}
        line = {"stage": stage, "started": started, "seconds": round(time.time() - started, 3)}
        self.append(JOURNAL, {**line, "files": entries})
        return read({name: bytes(made[name]) for name in files})

    def adopt(self, other: "RunFolder") -> None:
        """Take over the finished stages of another run that this one doesn't have yet."""
        have = {line["stage"] for line in self.journal()}
        for line in other.journal():
            if line["stage"] not in have:
                for name in line["files"]:
                    self.write(name, other.read(name))
                self.append(JOURNAL, line)

    def journal(self) -> list[dict[str, Any]]:
        """Finished stages in order; a last line cut off by a crash is left out."""
        lines = []
        for text in self.read(JOURNAL).decode().splitlines() if self.exists(JOURNAL) else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def _whole(self, stage: str, files: list[str]) -> dict[str, bytes] | None:
        entry = next((line for line in reversed(self.journal()) if line["stage"] == stage), None)
        if entry is None or set(entry["files"]) != set(files):
            return None
        contents = {}
        for name in files:
            if not self.exists(name):
                return None
            contents[name] = self.read(name)
            expected = entry["files"][name]
            if (
                len(contents[name]) != expected["size"]
                or _sha256(contents[name]) != expected["sha256"]
            ):
                return None
        return contents


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            change
            for name in names
            for change in _differences(
                old.get(name), new.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if old == new else [f"{key} was {old!r} and is {new!r}"]


def _sha256(data: bytes | pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()
