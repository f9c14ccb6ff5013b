"""What a report says of a run folder, whole or not; the page itself is tested in a browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from drawn_run import SCRIPT, drawn_run
from programs import daal

from daal.config import AttentionConfig, NetworkConfig
from daal.errors import DataError
from daal.evaluation import evaluate
from daal.nn.network import DaalNetwork
from daal.trained_model import TrainedModel
from pipelines.commands.report import leave_report
from pipelines.report import facts as report_data
from pipelines.report.attention_and_clusters import attention_maps, clusters
from pipelines.report.facts import doubts, read_facts
from pipelines.report.feature_map import feature_map
from pipelines.report.images import columns, feature_files, features
from pipelines.report.page import comparison, report
from pipelines.report.ranks import interval, retrieval
from pipelines.run.feature_files import read_features
from pipelines.run.folder import RunFolder, entry_of
from pipelines.run.stages import iteration_stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return drawn_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(whole, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(whole.base, tmp_path / "run")
    return RunFolder(str(tmp_path / "run"))


def missing(html):
    return [" ".join(text.split()) for text in re.findall(r"Not shown: ([^<]*)", html)]


def test_a_whole_run__every_part_is_shown(whole):
    made = report(whole)
    assert made.failures == [] and missing(made.html) == []
    scores = json.loads(whole.read("iteration-02/evaluation.json"))
    assert f"{100 * scores['map']:.1f}" in made.html
    assert len(made.html) < 5_000_000
    # Nothing that is a name or a setting has become markup.
    assert "<script" not in made.html and "onerror=&#34;" in made.html
    assert SCRIPT.replace("<", "&lt;").replace(">", "&gt;") in made.html
    assert "&lt;b&gt;merged&lt;/b&gt;" in made.html


def test_figures_of_cameras__and_labels_of_release_0_1_without_them(run):
    assert "Clusters and cameras" in report(run).html
    file = "iteration-02/clusters.json"
    figures = json.loads(run.read(file))
    by_camera = {"one_camera_share": 0.76, "one_camera_chance": 0.01}
    run.write(file, json.dumps(figures | by_camera).encode())
    assert "clusters follow cameras: 76% of them are of one camera" in report(run).html
    old = {name: figure for name, figure in figures.items() if "camera" not in name}
    kept = old | {"agreement": 1.0, "notes": ["kept the previous labels: DBSCAN found 0"]}
    for name in ("iteration-01/clusters.json", file):
        run.write(name, json.dumps(kept).encode())
    made = report(run)
    assert made.failures == [] and "Clusters and cameras" not in made.html
    assert "clustering found no new labels" in made.html
    assert "Agreement with the labels before" not in made.html  # with themselves, that was


@pytest.mark.parametrize(
    ("gone", "said", "times"),
    [
        ("images", "images/target.parquet is not in the run folder", 3),
        ("iteration-02/features", "iteration-02/features is not", 2),
        ("iteration-02/checkpoint", "iteration-02/checkpoint/checkpoint.json doesn", 2),
        ("iteration-02/pseudo_labels.parquet", "iteration-02/pseudo_labels.parquet is not", 2),
        ("metrics.jsonl", "metrics.jsonl has no training step", 1),
    ],
)
def test_what_is_gone__is_said_in_its_place(run, gone, said, times):
    path = Path(run.path(gone))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    made = report(run)
    assert made.failures == []
    assert sum(said in text for text in missing(made.html)) == times, missing(made.html)
    assert all(text.endswith(".") and run.base not in text for text in missing(made.html))
    is_measured = gone not in ("images", "iteration-02/features")
    assert ("95 % interval" in made.html) == is_measured
    scores = json.loads(run.read("iteration-02/evaluation.json"))
    assert f"{100 * scores['map']:.1f}" in made.html


def test_a_damaged_file__takes_only_its_own_part_along(run: RunFolder) -> None:
    for name in ("iteration-02/features/00001.parquet", "images/source.parquet"):
        path = Path(run.path(name))
        path.write_bytes(path.read_bytes()[:-100])
    made = report(run)
    assert any("rank lists could not be made" in failure for failure in made.failures)
    assert any("attention on the source" in failure for failure in made.failures)
    assert not any("target could not" in failure for failure in made.failures)


def test_unfinished__is_said_first(run):
    Path(run.path("summary.json")).unlink()
    lines = run.read("journal.jsonl").decode().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if '"iteration-02/extract"' in line)
    run.write("journal.jsonl", "".join(lines[:place]).encode())
    shutil.rmtree(run.path("supervised"))
    shutil.rmtree(run.path("iteration-02/features"))
    Path(run.path("iteration-02/evaluation.json")).unlink()
    facts = read_facts(run)
    assert facts.trained == [iteration_stage(1), iteration_stage(2)] and facts.adapted is None
    assert "not finished; the last stage that is done: iteration-02/train" in doubts(facts)[0]
    html = report(run).html
    assert "Scored so far: direct transfer" in html and "supervised bound" not in html.lower()


def test_without_a_test_split__a_source__attention(tmp_path):
    settings = ('source.root=""', "adapt.batch_source=0", "network.attention.mode=none")
    run = drawn_run(tmp_path, *settings, iterations=1)
    for stage in ("pretrain", "iteration-01", "supervised"):
        Path(run.path(f"{stage}/evaluation.json")).unlink()
    made = report(run)
    assert made.failures == []
    no_attention = "This network has no attention (network.attention.mode=none)."
    assert missing(made.html) == ["This run had no source.", no_attention]
    assert "This run has no scores" in made.html
    assert ">By camera<" in made.html and ">By domain<" not in made.html


@pytest.mark.parametrize("mode", ["residual", "independent"])
def test_attention_maps__one_and_its_rest__or_two_of_their_own(mode):
    attention = AttentionConfig(mode=mode, zero_init=False)
    config = NetworkConfig(backbone="resnet18", weights="none", attention=attention)
    network = DaalNetwork(config).eval()
    images_BCHW = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 9
    shared_Bhw, specific_Bhw = attention_maps(network, images_BCHW)
    features_BCHW = network.backbone(images_BCHW).detach()
    lengths_BHW = features_BCHW.norm(dim=1)
    parts = network.feature_maps(images_BCHW)[:2]
    for found, part in zip((shared_Bhw, specific_Bhw), parts, strict=True):
        assert np.allclose(found * lengths_BHW.numpy(), part.detach().norm(dim=1), rtol=1e-4)
        assert found.std() > 0 and found.min() > 0 and found.max() < 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("iteration-02/evaluation.json", '{"map": "<b>", "rank1": 1, "num_valid_queries": 8}'),
        ("iteration-02/clusters.json", '{"num_clusters": {}, "outlier_share": "x"}'),
        ("journal.jsonl", "[]\n{}\n"),
        ("metrics.jsonl", '{"loss": 3, "stage": []}\n'),
    ],
)
def test_small_files_that_say_nonsense__are_refused_in_a_sentence(run, file, content):
    run.write(file, content.encode())
    with pytest.raises(DataError, match="damaged or of another version"):
        report(run)


def test_leave_report__never_fails(run, monkeypatch):
    notes = []
    leave_report(run, notes.append)
    assert notes == [] and run.read("report.html").startswith(b"<!DOCTYPE html>")
    Path(run.path("report.html")).unlink()
    monkeypatch.setattr(report_data, "read_facts", lambda run: 1 / 0)
    leave_report(run, notes.append)
    assert len(notes) == 1 and "no report was written" in notes[0] and "daal report" in notes[0]
    assert not run.exists("report.html")


def test_command__writes_into_the_run_or_to_out(run, tmp_path):
    code, _, err = daal("report", run.uri)
    assert code == 0 and f"{run.uri}/report.html" in err.replace("\n", "")
    assert b"What to be careful about" in run.read("report.html")
    again = shutil.copytree(run.base, tmp_path / "again/run")
    code, _, _ = daal("report", run.uri, again, "--out", tmp_path / "both.html")
    assert code == 0
    assert "these runs have the same settings" in (tmp_path / "both.html").read_text()


def test_comparison__names_that_tell_apart__differences_only__other_data(whole, tmp_path):
    other = drawn_run(tmp_path, "cluster.eps=0.7", iterations=1)
    html = comparison([whole, other]).html
    assert "cluster.eps" in html and ">0.7<" in html and "network.backbone" not in html
    assert "did not read the same target images" not in html  # drawn from one seed
    assert "<script" not in html and "<img" not in html
    Path(other.path("journal.jsonl")).write_text(
        other.read("journal.jsonl").decode().replace('"sha256": "', '"sha256": "0')
    )
    settings = yaml.safe_load(other.read("config.yaml"))
    del settings["ray"]  # release 0.1 kept nothing of its workers
    other.write("config.yaml", yaml.safe_dump(settings).encode())
    html = comparison([whole, other]).html
    assert "did not read the same target images" in html and "ray.num_workers" not in html


def test_a_last_labelling__counts_until_the_run_is_given_more_iterations(run):
    clusters = json.loads(run.read("iteration-02/clusters.json"))

    def finish(stage):
        run.write(f"{stage}/clusters.json", json.dumps(clusters).encode())
        run.append("journal.jsonl", {"stage": f"{stage}/estimate", "seconds": 1, "files": {}})
        return [stage.name for stage in read_facts(run).labellings]

    made = ["iteration-01", "iteration-02"]
    assert finish("final") == [*made, "final"]
    assert finish("iteration-03") == [*made, "iteration-03"]
    assert finish("final") == [*made, "iteration-03", "final"]


def test_trained_on_other_workers__is_a_doubt(run):
    assert "Trained on" not in " ".join(doubts(read_facts(run)))
    for stage, workers in (("pretrain", 2), ("iteration-01", 2), ("iteration-02", 1)):
        line = {"workers": workers, "device": "CPU", "seconds": 1, "files": {}}
        run.append("journal.jsonl", {"stage": f"{stage}/train", **line})
    said = " ".join(doubts(read_facts(run)))
    assert "Trained on 2 workers on CPUs and on 1 worker on CPUs" in said


def test_interval__is_over_people_and_not_over_queries():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 50)
    good = np.repeat(rng.random(20) < 0.5, 50).astype(float)  # a person's queries all do as well
    low, high = interval(good, people, seed=0)
    assert low < good.mean() < high and high - low > 0.3
    low, high = interval(good, np.arange(len(good)), seed=0)
    assert high - low < 0.1
    assert interval(np.ones(6), np.array([1, 1, 2, 2, 3, 3]), seed=0) == (1.0, 1.0)


def test_rank_lists__are_those_of_the_scores(whole):
    model = iteration_stage(1)
    found = retrieval(whole, read_facts(whole).config, model)
    about = columns(whole, feature_files(whole, model), ("split", "pid", "camid", "path"))
    query, gallery = (np.flatnonzero(about["split"] == split) for split in ("query", "gallery"))
    pids, camids = about["pid"], about["camid"]
    scored = evaluate(
        features(whole, model, query), pids[query], camids[query],
        features(whole, model, gallery), pids[gallery], camids[gallery],
    )  # fmt: skip
    assert found.num_queries == found.num_sampled == len(scored.ap)
    row_of = {path: row for row, path in enumerate(about["path"])}
    for listed in [*found.worst, *found.typical]:
        row = row_of[listed.query.title]
        place = query.tolist().index(row)
        assert listed.ap == pytest.approx(scored.ap[place])
        assert listed.first == scored.first_match_rank[place] + 1
        for photo in listed.found:
            other = row_of[photo.title]
            same = pids[other] == pids[row]
            assert pids[other] != -1 and not (same and camids[other] == camids[row]), "junk"
            assert photo.kind == ("right" if same else "wrong")
        kinds = [photo.kind for photo in listed.found]
        assert listed.first > len(kinds) or kinds.index("right") + 1 == listed.first
    assert found.worst[0].ap == np.nanmin(scored.ap)
    low, high = found.intervals["map"]
    assert low <= scored.map <= high and "rank1_gain" in found.intervals


def test_clusters__purity_by_counting(whole):
    found = clusters(whole, read_facts(whole))
    pids = columns(whole, "images/target.parquet", ["pid"])["pid"]
    name = "pseudo_label"
    labels = columns(whole, "iteration-02/pseudo_labels.parquet", [name])[name]
    members = [pids[labels == number] for number in range(labels.max() + 1)]
    sizes = [len(some) for some in members if len(some)]
    purities = [max(np.bincount(some)) / len(some) for some in members if len(some)]
    assert found[0].size == max(sizes)
    assert min(c.purity or 0 for c in found) == pytest.approx(min(purities))
    for cluster in found:
        assert (cluster.size, cluster.purity) in zip(sizes, purities, strict=True)
        assert len(cluster.photos) == min(cluster.size, 12)
        assert {photo.kind for photo in cluster.photos} <= {"right", "wrong"}


def test_feature_map__outliers_are_crosses__the_source_is_only_in_its_own_plot(
    whole: RunFolder,
) -> None:
    facts = read_facts(whole)
    model = TrainedModel(facts.config, DaalNetwork(facts.config.network).state_dict())
    found = feature_map(whole, facts, iteration_stage(2), model)
    assert (found.num_target, found.num_source) == (48, 48)
    assert [plot.title for plot in found.plots] == ["By pseudo-label", "By camera", "By domain"]
    by_label, by_camera, by_domain = (plot.svg for plot in found.plots)
    assert by_label.count("<use") == 48 and len(re.findall("<use.*opacity: 0.4", by_label)) == 5
    assert by_camera.count("<use") == 48 + 2 and by_domain.count("<use") == 48 + 48 + 2


def test_features__in_blocks__or_in_one_file_as_of_release_0_1(run: RunFolder) -> None:
    model, folder = iteration_stage(2), Path(run.path("iteration-02/features"))
    given = read_features(folder)
    assert len(list(folder.iterdir())) == 2 and len(given.features_NC) > 64
    rows = np.array([70, 3, 64])
    assert np.array_equal(features(run, model, rows), given.features_NC[rows])
    name = "iteration-02/features.parquet"
    pq.write_table(pq.read_table(folder), run.path(name))
    line = next(line for line in run.journal() if line["stage"] == "iteration-02/extract")
    run.append("journal.jsonl", line | {"files": {name: entry_of(run.read(name))}})
    shutil.rmtree(folder)
    older = RunFolder(run.base)
    assert np.array_equal(features(older, model, rows), given.features_NC[rows])
    assert "95 % interval" in report(older).html
