"""A run as a job: a head that asks for a token, on its own ports and folder, gone afterwards."""

import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from heads import free_port, ray_head
from programs import python
from tiny_run import recipe_of
from waiting import wait_until

from daal.config import Config
from daal.errors import ClusterError, ConfigError
from pipelines.tools.jobs import Jobs, check_name

ROOT = Path(__file__).parents[2]
WEIGHTS = "iteration-01/checkpoint/weights.safetensors"
TOKEN = "0123456789abcdef" * 4


def recipe_in(out, config):
    """Its path; the run's folder is `out`."""
    return recipe_of(config.model_copy(update={"out": str(out)}), out.with_suffix(".yaml"))


def daal(head, *arguments, token=TOKEN):
    environment = head.environment | {"RAY_AUTH_TOKEN": token}
    return python("-m", "daal", *arguments, f"--address={head.dashboard}", env=environment)


@pytest.fixture(scope="module")
def head():
    with ray_head(TOKEN) as started:
        wait_until(lambda: daal(started, "status").returncode == 0, "the job API doesn't answer")
        yield started


@contextmanager
def gauges_seen(port):
    """Lines of our gauges that the metrics port shows during the block."""
    lines, over = set(), threading.Event()

    def watch():
        while not over.wait(1):
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as it,
            ):
                text = it.read().decode()
                lines.update(line for line in text.splitlines() if line.startswith("ray_daal_"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield lines
    over.set()
    thread.join()


@pytest.mark.ray
def test_a_run_is_submitted_followed_and_seen(head, tiny_config, tmp_path):
    recipe = recipe_in(tmp_path / "runs/Tiny", tiny_config)
    with gauges_seen(head.metrics_port) as lines:
        first = daal(head, "submit", recipe, "--ship-code", "--follow")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Scores on the target's test images" in first.stdout
    assert (tmp_path / "runs/Tiny/summary.json").exists()
    assert TOKEN not in first.stdout + first.stderr
    names = {line.partition("{")[0] for line in lines}
    assert {"ray_daal_map", "ray_daal_loss", "ray_daal_clusters", "ray_daal_stage"} <= names
    assert all('run="tiny"' in line for line in lines)

    status = daal(head, "status", "tiny")
    assert "daal-tiny-1" in status.stdout and "SUCCEEDED" in status.stdout
    assert "is over already" in daal(head, "stop", "tiny").stderr
    unknown = daal(head, "logs", "nobody")
    assert unknown.returncode == 2 and "knows no run nobody" in unknown.stderr


@pytest.mark.ray
@pytest.mark.nightly
def test_a_name_submitted_again_continues_the_run__an_exit_code_is_the_run_s(
    head, tiny_config, tmp_path
):
    recipe = recipe_in(tmp_path / "runs/Twice", tiny_config)
    first = daal(head, "submit", recipe, "--ship-code", "--follow")
    assert first.returncode == 0, first.stdout + first.stderr
    journal = (tmp_path / "runs/Twice/journal.jsonl").read_text()
    again = daal(head, "submit", recipe, "--ship-code", "--follow")
    assert again.returncode == 0 and "daal-twice-2" in again.stderr, again.stderr
    assert (tmp_path / "runs/Twice/journal.jsonl").read_text() == journal
    assert "Scores on the target's test images" in daal(head, "logs", "twice").stdout

    wrong = daal(head, "submit", recipe, "out=" + str(tmp_path / "wrong"),
                      "target.root=/nowhere", "--ship-code", "--follow")  # fmt: skip
    assert wrong.returncode == 3, wrong.stdout + wrong.stderr
    assert "/nowhere" in wrong.stdout


@pytest.mark.ray
def test_a_wrong_token_is_refused(head):
    refused = daal(head, "status", token="f" * 64)
    assert refused.returncode == 6, refused.stdout + refused.stderr
    assert "refuses the token" in refused.stderr and "Traceback" not in refused.stderr
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/")


@pytest.mark.ray
@pytest.mark.nightly
def test_two_runs_that_fit_only_one_at_a_time(head, two_workers, tmp_path):
    names = ["left", "right"]
    for name in names:
        submitted = daal(head, "submit", recipe_in(tmp_path / name, two_workers), "--ship-code")
        assert submitted.returncode == 0, submitted.stderr
    weights = []
    for name in names:
        followed = daal(head, "logs", name, "--follow")
        assert (tmp_path / name / "summary.json").exists(), followed.stdout
        weights.append((tmp_path / name / WEIGHTS).read_bytes())
    logs = [daal(head, "logs", name).stdout for name in names]
    assert any("waiting for room: 2 workers of 1 CPUs" in log for log in logs), logs
    assert weights[0] == weights[1]


@pytest.mark.ray
def test_the_shipped_settings_for_prometheus_find_the_node(head):
    config = yaml.safe_load((ROOT / "pipelines/deploy/prometheus.yml").read_text())
    (scraped,) = config["scrape_configs"]
    assert scraped["authorization"]["credentials_file"]
    (nodes,) = scraped["file_sd_configs"]
    listed = Path(head.folder, Path(nodes["files"][0]).name)

    def is_listed():  # by the node's address, whichever of the machine's that is
        return listed.exists() and f':{head.metrics_port}"' in listed.read_text()

    wait_until(is_listed, "the node isn't listed")
    # Ray 2.60 shows its metrics to anyone who reaches the port; docs/cluster.md says so.
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics") as it:
        assert it.status == 200


def test_nobody_listens_there(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_API_SERVER_ADDRESS", "no_proxy"):
        monkeypatch.setenv(name, "")  # put back after the test
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}"):
        Jobs(address).all()


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "-a", "x" * 64, "a/b", "a\n"])
def test_names_that_are_none(name):
    with pytest.raises(ConfigError, match="can't name a run"):
        check_name(name)


def test_the_default_name_is_the_folder_s():
    assert Config(out="s3://bucket/runs/Mine_2/").run_name == "mine_2"
