"""Each node of a cluster runs the code of the command, or the command says which doesn't."""

from pathlib import Path

import pytest

from daal.errors import ClusterError
from pipelines.workers.code_on_nodes import PACKAGES, check_code_on_nodes, code_found

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def test_the_same_code__other_code__and_a_package_that_isn_t_there(ray_cluster, monkeypatch):
    ours = code_found(PACKAGES)
    assert {Path(str(place)).parents[1] for place in ours["places"].values()} == {ROOT}
    check_code_on_nodes(ours)
    with pytest.raises(ClusterError, match=r"the node \S+ would run other code .*install the same"):
        check_code_on_nodes({**ours, "digest": "another version's"})
    monkeypatch.setattr("pipelines.workers.code_on_nodes.PACKAGES", (*PACKAGES, "no_such_package"))
    with pytest.raises(ClusterError, match=r"other code \(.*nowhere\) .*install the same"):
        check_code_on_nodes({**ours, "digest": "of one more package"})


def test_a_changed_file__changes_the_digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wares").mkdir()
    for text in ("", "one = 1\n", "one = 2\n"):
        (tmp_path / "wares/__init__.py").write_text(text)
    first = code_found(("wares",))["digest"]
    (tmp_path / "wares/new.py").write_text("")
    second = code_found(("wares",))["digest"]
    (tmp_path / "wares/new.py").write_text("two = 2\n")
    assert len({first, second, code_found(("wares",))["digest"]}) == 3
