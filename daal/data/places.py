"""Where an image set lies: a folder on a disk or in a bucket, read by names relative to it."""

import os
import re
from collections import defaultdict
from functools import lru_cache
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from daal.errors import DataError, first_line

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
SCHEMES = ("s3", "gs")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
AT_ONCE = 20_000  # names in Python's strings
ABSENT = (-1, -1)  # state of a file that isn't there


class Place:
    """The root of an image set. `place / name` is how messages write a name in it."""

    def __init__(self, root: str | os.PathLike[str], what: str = "The data set's root") -> None:
        """Raises DataError if there is no such folder, or no such kind of URI."""
        self.root = os.fspath(root)
        self.is_local = not is_bucket(self.root)
        if self.is_local:
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
            self.base = str(checked_root(self.root, what).absolute())
            return
        if has_login(self.root):
            raise DataError(
                f"{what} has a login in it, which messages and run folders would show; leave it to "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's role."
            )
        try:
            self.filesystem, self.base = fs.FileSystem.from_uri(self.root)
            is_there = self.filesystem.get_file_info(self.base).type == fs.FileType.Directory
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{what} {self.root} can't be opened ({first_line(error).rstrip('.')}); give a "
                "folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER that you may read."
            ) from None
        if not is_there:
            raise DataError(f"{what} {self.root} isn't there, or is empty; correct its name.")

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, name: str) -> str:
        shown = joined(self.root, name)
        return shown if self.is_local else shown.partition("?")[0]

    def path(self, name: str) -> str:
        """The name's path on the file system."""
        return self.base if name == "." else f"{self.base}/{name}"

    def exists(self, name: str, kind: fs.FileType | None = None) -> bool:
        """Whether there is a file or folder of this name; one of this kind, if that is given."""
        found = self._info(name).type
        return bool(found != fs.FileType.NotFound if kind is None else found == kind)

    def has_folder(self, name: str) -> bool:
        return self.exists(name, fs.FileType.Directory)

    def images(self, folder: str) -> list[str]:
        """Names of the images in a folder, hidden ones left out; DataError for what is odd."""
        return self._local_images(folder) if self.is_local else self._images(folder)

    def _images(self, folder: str) -> list[str]:
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.path(folder)))
        except OSError as error:
            raise self._unreadable(folder, error) from None
        return [
            info.base_name for info in found if info.type == fs.FileType.File
            and not info.base_name.startswith(".") and is_image(info.base_name)
        ]  # fmt: skip

    def _local_images(self, folder: str) -> list[str]:
        self.refuse_outside(folder)
        names = []
        try:
            with os.scandir(self.path(folder)) as entries:
                for entry in entries:
                    # Hidden names include macOS's "._0002_c1...jpg", which are no images.
                    if entry.name.startswith(".") or not is_image(entry.name):
                        continue
                    if entry.is_symlink():
                        self.refuse_outside(f"{folder}/{entry.name}")
                        if not os.path.exists(entry.path):
                            raise DataError(
                                f"{self / folder} has a broken link, {entry.name!a}; copy the "
                                "file in instead."
                            )
                    if not entry.is_file():  # reading a pipe would wait for ever
                        raise DataError(
                            f"{self / folder} has {entry.name!a}, which is no file though it has "
                            "an image's name; remove or rename it."
                        )
                    names.append(entry.name)
        except OSError as error:
            raise self._unreadable(folder, error) from None
        return names

    def refuse_outside(self, name: str) -> None:
        """Raise DataError for a link that leads out of the root. A bucket has no links."""
        if self.is_local and not is_inside(self.base, self.path(name)):
            raise DataError(
                f"{self / name} is a link that leads out of the data set's root; copy the files "
                "in instead (cp -rL makes a copy with files in place of links)."
            )

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(self.path(name)) as file:
            return bytes(file.read())

    def states(self, names: pa.Array) -> NDArray[np.int64]:
        """Size in bytes and time of change in nanoseconds of each file (N, 2); -1 of one that isn't
        there (any more)."""
        batches = range(0, len(names), AT_ONCE)
        texts = (text for at in batches for text in names[at : at + AT_ONCE].to_pylist())
        try:
            state = self._local_state if self.is_local else self._states_beside(names).__getitem__
            states = chain.from_iterable(map(state, texts))
            return np.fromiter(states, np.int64, 2 * len(names)).reshape(-1, 2)
        except OSError as error:
            raise self._unreadable("", error) from None

    def _local_state(self, name: str) -> tuple[int, int]:
        try:
            found = os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else ABSENT

    def _states_beside(self, names: pa.Array) -> dict[str, tuple[int, int]]:
        """States of all files in the folders of these, by name; ABSENT of any other."""
        folders = pc.unique(pc.replace_substring_regex(names, "/?[^/]*$", ""))
        found: dict[str, tuple[int, int]] = defaultdict(lambda: ABSENT)
        for folder in folders.to_pylist():
            inside = fs.FileSelector(self.path(folder or "."), allow_not_found=True)
            for info in self.filesystem.get_file_info(inside):
                if info.type == fs.FileType.File:
                    found[info.path[len(self.base) + 1 :]] = info.size, info.mtime_ns or 0
        return found

    def _info(self, name: str) -> fs.FileInfo:
        try:
            return self.filesystem.get_file_info(self.path(name))
        except OSError as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: OSError) -> DataError:
        if self.is_local:
            return DataError(
                f"{self / name} can't be read ({error.strerror}); check that it is a folder and "
                "its permissions."
            )
        return DataError(
            f"{self / name} can't be read ({first_line(error).rstrip('.')}); check the bucket's "
            "name, the network and your permissions."
        )


opened = lru_cache(maxsize=64)(Place)  # by root: opening a bucket takes requests


def is_bucket(root: str) -> bool:
    return root.partition("://")[0] in SCHEMES and "://" in root


def has_login(uri: str) -> bool:
    """Whether a URI holds a name or a password, as in s3://KEY:SECRET@BUCKET."""
    return bool(urlsplit(uri).username)


def joined(root: str, name: str) -> str:
    """A name under a folder; a URI's options stay at the end."""
    if not is_bucket(root):
        return str(Path(root) / name)
    path, mark, options = root.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def checked_root(root: str | os.PathLike[str], what: str = "The data set's root") -> Path:
    """The folder on a disk; DataError if it is none. A URI is named as it was given."""
    text = os.fspath(root)
    if os.path.isdir(text):  # of Path, it fails where the name is too long for the disk
        return Path(text)
    if URI.match(text):
        given = text if "://" in text else text.replace(":/", "://", 1)  # of a Path
        raise DataError(
            f"{given} is a URI that images can't be read from here; give a folder, or, for a run, "
            "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."
        )
    shown = text if text == text.strip() else f"{text!a} (a space begins or ends it)"
    raise DataError(f"{what} {shown} isn't a folder; give the folder of the unpacked images.")


def is_inside(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path stays under `root`, links followed."""
    real_root = os.path.realpath(root)
    try:
        return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root
    except ValueError:  # it has a zero byte
        return False
