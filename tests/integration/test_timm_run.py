"""A whole run with a network of timm: killed and resumed to the same bits, reported, searched."""

import json
import sys
from pathlib import Path

import pytest
from timm_networks import EVERY_DAY, NIGHTLY
from tiny_run import tiny

from pipelines import cli
from pipelines.commands.run import run_adaptation
from pipelines.workers.planned_faults import FAULTS

pytestmark = pytest.mark.ray
pytest.importorskip("timm")

OTHERS = [name for name in (*EVERY_DAY, *NIGHTLY) if name != EVERY_DAY[0]]
# Six steps, with a checkpoint after each two.
SETTINGS = [
    "network.weights=none", "network.frozen_stages=1", "network.neck=bnneck", "input.height=64",
    "input.width=32", "ray.num_workers=2", "adapt.epochs=3", "adapt.steps_per_epoch=2",
    "adapt.optim.optimizer=adamw", "adapt.optim.layer_decay=0.8", "adapt.optim.lr_backbone=1e-3",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [EVERY_DAY[0], *(pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS)]
)
def test_adapts__resumes_to_the_same_bits__and_finds(
    name: str,
    ray_cluster: None,
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [f"network.backbone=timm:{name}", *SETTINGS]
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    plain = tiny(tiny_world, tmp_path / "undisturbed", *settings, "report=false")
    run_adaptation(plain, quiet=True)
    fault = {"stage": "iteration-01", "step": 3, "rank": 1}
    monkeypatch.setenv(FAULTS, json.dumps([fault]))
    killed = tiny(tiny_world, tmp_path / "killed", *settings)
    run_adaptation(killed, quiet=True)

    metrics = (tmp_path / "killed/metrics.jsonl").read_text()
    assert '"first_step": 2' in metrics, "it did not resume from a checkpoint"
    weights = "iteration-01/checkpoint/weights.safetensors"
    before = (tmp_path / "undisturbed" / weights).read_bytes()
    assert (tmp_path / "killed" / weights).read_bytes() == before
    assert "attention" in (tmp_path / "killed/report.html").read_text()

    query = next((tiny_world / "target/query").glob("*.jpg"))
    command = ["daal", "search", tmp_path / "killed", query, tiny_world / "target/query", "--json"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert found["num_gallery"] > 3
    assert found["matches"][0]["similarity"] > found["matches"][-1]["similarity"]
