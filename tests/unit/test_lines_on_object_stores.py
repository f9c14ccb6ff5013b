"""A run's lines on a file system that can't append: the last costs as much as the first."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from pipelines.run.folder import PART_BYTES, RunFolder


class Counting(fs.FSSpecHandler):  # type: ignore[misc]
    """A store in memory that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(MemoryFileSystem())
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("open_input_stream", "open_output_stream", "get_file_info", "move",
                    "get_file_info_selector", "create_dir", "delete_file"):  # fmt: skip
            self.asked[name] += 1
        return super().__getattribute__(name)

    @property
    def num_requests(self) -> int:
        return self.asked.total()


@pytest.fixture
def store() -> Iterator[Counting]:
    MemoryFileSystem.store.clear()
    yield Counting()
    MemoryFileSystem.store.clear()


def on(store: Counting, tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path), create=False)
    run.filesystem, run.base, run.is_local = fs.PyFileSystem(store), "/run", False
    return run


def test_requests_and_bytes_grow_with_the_lines_alone(store: Counting, tmp_path: Path) -> None:
    run, sent = on(store, tmp_path), Counter[int]()
    write, at = run.write, 0
    run.write = lambda name, data: (sent.update({at // 500: len(data)}), write(name, data))[1]  # type: ignore[assignment]
    requests = [0]
    for at in range(2000):
        run.append("metrics.jsonl", {"number": at, "loss": {"total": 1.0}, "pad": "x" * 250})
        if at % 500 == 499:
            requests.append(store.num_requests)
    first, *_, last = (sent[block] for block in range(4))
    assert last < 1.2 * first, "a later line sends more than an early one"
    assert max(sent.values()) < 500 * (PART_BYTES + 1000)
    each = [after - before for before, after in pairwise(requests)]
    assert 0 < max(each) <= each[0] + 10
    before = store.num_requests
    assert [line["number"] for line in run.lines("metrics.jsonl")] == list(range(2000))
    assert store.num_requests - before < 2000 / 20, "a part has many lines"


def test_a_line_is_there_at_once__and_the_next_command_adds_to_it(
    store: Counting, tmp_path: Path
) -> None:
    for first in (0, 100):
        run = on(store, tmp_path)
        for number in range(first, first + 100):
            run.append("metrics.jsonl", {"number": number, "pad": "x" * 250})
            assert on(store, tmp_path).lines("metrics.jsonl")[-1]["number"] == number
    assert len(run.lines("metrics.jsonl")) == 200


def test_a_long_file_of_release_0_1__is_left_as_it_is(store: Counting, tmp_path: Path) -> None:
    old = b'{"number": 0}\n' * 5000
    on(store, tmp_path).write("metrics.jsonl", old)
    run = on(store, tmp_path)
    for number in (1, 2):
        run.append("metrics.jsonl", {"number": number})
    assert on(store, tmp_path).read("metrics.jsonl") == old
    lines = on(store, tmp_path).lines("metrics.jsonl")
    assert len(lines) == 5002 and [line["number"] for line in lines[-2:]] == [1, 2]


def test_parts_on_a_disk__as_after_a_copy__are_read_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"stage": "a", "files": {}}\n')
    (tmp_path / "journal.000002.jsonl").write_text('{"stage": "b", "files": {}}\n')
    (tmp_path / "journal.backup.jsonl").write_text('{"stage": "none of ours"}\n')
    RunFolder(str(tmp_path)).append("journal.jsonl", {"stage": "c", "files": {}})
    assert [line["stage"] for line in RunFolder(str(tmp_path)).journal()] == ["a", "b", "c"]


def test_the_journal_is_read_once_for_all_stages(store: Counting, tmp_path: Path) -> None:
    def pass_through(num_stages: int) -> int:
        run, before = on(store, tmp_path), store.asked["open_input_stream"]
        for number in range(num_stages):
            run.once(f"{number}", [f"{number}.bin"], lambda: {f"{number}.bin": b"x"})  # noqa: B023
        return store.asked["open_input_stream"] - before

    pass_through(40)
    assert pass_through(40) <= 40 + 10, "the files themselves, and the journal's few parts"
