"""A suite on real Ray: what rows share is run once, and a second time nothing is."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from daal.errors import ConfigError, DaalError
from pipelines.run.folder import RunFolder
from pipelines.tools.ablate import (
    Row,
    Suite,
    configurations,
    pretraining_key,
    read_suite,
    results,
    run_suite,
)
from pipelines.tools.shipped import SUITES, read_config
from pipelines.tools.suite_table import measured_on, write_table
from pipelines.tools.validate import validate

HARD = ["soft_labels.target_labels=hard"]
PAPER = {"Duke to Market": (23.4, 51.5)}
SUITE = Suite(
    title="Labels <of> target images",
    seeds=1,
    rows=[
        Row(name="direct", settings=HARD, score="direct_transfer", paper=PAPER),
        Row(name="hard", settings=HARD),
    ],
)


@pytest.mark.ray
def test_rows_share_runs_and_pretraining__what_fails_is_named__nothing_is_repeated(
    ray_cluster, tiny_config, tmp_path
):
    said = []
    say = said.append
    out = str(tmp_path / "suite")
    bad = Row(name="no cluster", settings=["cluster.eps=1e-9"])
    with_bad = SUITE.model_copy(update={"rows": [bad, *SUITE.rows]})
    configs = configurations(with_bad, lambda name: tiny_config, [], 1, out)
    folders = {name: Path(config.out) for (name, _), config in configs.items()}
    assert folders["direct"] == folders["hard"]
    with pytest.raises(DaalError, match=r"1 of 2 runs failed.*\nno cluster, seed 0: DBSCAN found"):
        run_suite(with_bad, configs, out, say)
    assert sum("started" in line for line in said) == 3  # one pretraining, two runs

    said.clear()
    configs = configurations(SUITE, lambda name: tiny_config, [], 1, out)
    found = run_suite(SUITE, configs, out, say)
    assert not any("started" in line for line in said)

    pretraining = [(folders[name] / "pretrain/features/00000.parquet").read_bytes()
                   for name in ("hard", "no cluster")]  # fmt: skip
    assert pretraining[0] == pretraining[1]
    journals = [[line["started"] for line in RunFolder(str(folders[name])).journal()]
                for name in ("hard", "no cluster")]  # fmt: skip
    assert journals[0][:4] == journals[1][:4]  # the same stages, run once
    scores = json.loads((folders["hard"] / "summary.json").read_text())
    assert found[0].scores[0]["map"] == scores["direct_transfer"]["map"]
    assert found[1].gain() == pytest.approx(
        scores["adapted"]["map"] - scores["direct_transfer"]["map"]
    )
    assert (folders["hard"] / "log.txt").read_text()
    assert results(SUITE, configs) == found

    measured = measured_on(tiny_config, validate(tiny_config).counts)
    assert "drawn images" in measured
    text = write_table(tmp_path, SUITE, found, measured)
    assert "23.4 / 51.5" in text and measured in text
    assert json.loads((tmp_path / "table.json").read_text())["rows"][1]["name"] == "hard"
    assert ElementTree.parse(tmp_path / "table.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", sorted(file.stem for file in SUITES.glob("*.yaml")))
def test_every_row_of_the_shipped_suites_is_a_run(name):
    suite = read_suite(name)
    folders = {"market": "a", "duke": "b", "msmt17": "c"}
    configs = configurations(suite, read_config, ["seed=0"], suite.seeds, "out", folders)
    assert len(configs) == len(suite.rows) * suite.seeds
    for row in suite.rows:
        config = configs[row.name, 0]
        if row.score.startswith("iteration-"):
            assert int(row.score.removeprefix("iteration-")) <= config.iterations
        elif row.score == "supervised":
            assert config.supervised_bound
        elif row.score == "adapted":
            assert config.iterations > 0


def test_table_4_has_eight_runs_on_three_pretrainings():
    suite = read_suite("table4")
    configs = configurations(suite, read_config, [], 1, "out")
    assert len({config.out for config in configs.values()}) == 8  # two rows are one run
    assert len({pretraining_key(config) for config in configs.values()}) == 3
    assert suite.rows[-1].paper == {"Duke to Market": (67.8, 86.4), "Market to Duke": (63.9, 77.6)}


def test_rows_may_name_their_data_and_recipe():
    rows = [Row(name="D to M", source="duke", target="market", recipe="fast", settings=["seed=5"])]
    suite = SUITE.model_copy(update={"rows": rows})
    folders = {"duke": "/d", "market": "/m"}
    (config,) = configurations(suite, read_config, ["iterations=2"], 1, "out", folders).values()
    assert (config.source.root, config.source.layout) == ("/d", "dukemtmc")
    assert (config.target.root, config.target.layout) == ("/m", "market1501")
    assert config.input.height == 128 and config.iterations == 2 and config.seed == 0
    with pytest.raises(ConfigError, match=r'row "D to M" needs the folder of market: --data'):
        configurations(suite, read_config, [], 1, "out", {"duke": "/d"})
    other = SUITE.model_copy(update={"rows": [rows[0].model_copy(update={"target": "mars"})]})
    with pytest.raises(ConfigError, match=r"target is one of market, duke, msmt17"):
        configurations(other, read_config, [], 1, "out", folders)


def test_a_rows_rule_for_eps_takes_the_place_of_the_suites__and_the_users_of_both():
    rows = [Row(name="q", settings=["cluster.q=8"]), Row(name="the suite's")]
    suite = Suite(title="eps", settings=["cluster.eps=0.45"], rows=rows)

    def rules(*settings):
        found = configurations(suite, read_config, settings, 1, "out").values()
        return [(c.cluster.eps_rule, getattr(c.cluster, c.cluster.eps_rule, 0)) for c in found]

    assert rules() == [("q", 8), ("fixed", 0)]
    assert rules("cluster.p=1e-3") == [("p", 1e-3)] * 2


def test_a_row_without_a_source_has_none__whatever_the_user_gives():
    given = ["source.root=/drawn", "target.root=/real"]
    configs = configurations(read_suite("beyond"), read_config, given, 1, "out")
    assert configs["modern, without a source", 0].target_only
    assert configs["the whole method (DAAL)", 0].source.root == "/drawn"
