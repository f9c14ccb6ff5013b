"""Recipes and overrides: what parses, and what is said when something doesn't."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from daal.config import VALUE_OF_RULE, ClusterConfig, conditions_of, fields
from daal.errors import ConfigError
from daal.load_config import PATHS, apply_overrides, check_config, flat, load_config
from pipelines.tools.shipped import read_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "pipelines" / "recipes").glob("*.yaml"))


def test_recipe_paper__is_the_printed_text():
    config = load_config(next(path for path in RECIPES if path.stem == "paper"))
    assert (config.input.height, config.input.width) == (384, 128)
    assert config.adapt.epochs == 260
    assert config.adapt.batch_source + config.adapt.batch_target == 32
    assert (config.adapt.optim.lr_backbone, config.adapt.optim.lr_new) == (1.5e-4, 3e-5)
    labels = config.soft_labels
    assert (labels.epsilon, labels.target_labels) == (0.9, "soft-literal")
    assert config.network.backbone == "resnet50"


def test_overrides__win_over_the_file_and_are_typed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\ncluster: {eps: 0.4, k1: 30}\n")
    config = load_config(file, ["cluster.eps=0.6", "adapt.steps_per_epoch=null"])
    assert (config.seed, config.cluster.eps, config.cluster.k1) == (3, 0.6, 30)
    assert config.adapt.steps_per_epoch is None


@pytest.mark.parametrize("key", PATHS)
def test_a_home_folder_that_no_shell_expanded(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(apply_overrides({}, [f"{key}=~/a b"])))
    for config in (load_config(None, [f"{key}=~/a b"]), load_config(file)):
        assert flat(config.model_dump())[key] == f"{tmp_path}/a b"
    elsewhere = load_config(file, expand_home=False)  # expanded on the machine that runs it
    assert flat(elsewhere.model_dump())[key] == "~/a b"
    with pytest.raises(ConfigError, match=r"begins with a home folder that isn't known here"):
        load_config(None, [f"{key}=~nobody-of-this-name/x"])


@pytest.mark.parametrize("given", ["'/data/run #1'", "/data/run#1"])
def test_what_is_no_comment(given):
    assert load_config(None, [f"target.root={given}"]).target.root == given.strip("'")


@pytest.mark.parametrize(
    ("recipe", "overrides", "common"),
    [
        ("modern", ["ray.min_workers=1", "ray.num_workers=4"], 64),
        ("udap", ["ray.num_workers=1", "accumulate=4"], 32),
        ("ssg", ["ray.num_workers=2", "adapt.batch_target=24", "accumulate=2"], 4),
        ("fast", ["ray.min_workers=1", "ray.num_workers=7"], 16),
    ],
)
def test_batches_of_any_range_of_workers__and_parts_of_whole_identities(recipe, overrides, common):
    assert read_config(recipe, overrides).common_batch == common


@pytest.mark.parametrize(
    ("recipe", "settings", "rule"),
    [
        ("", [], ("p", 1.6e-3)),
        ("", ["cluster.eps=0.6"], ("fixed", 0.6)),
        ("", ["cluster={q: 8}"], ("q", 8)),
        ("cluster: {q: 8}", ["cluster.eps=0.6"], ("fixed", 0.6)),
        ("cluster: {eps: 0.4}", ["cluster.p=1e-3"], ("p", 1e-3)),
        ("cluster: {eps: 0.4}", ["cluster.eps=null"], ("p", 1.6e-3)),
        ("cluster: {eps: 0.4}", ["cluster.k1=10"], ("fixed", 0.4)),
        # as in release 0.1
        ("", ["cluster.eps_rule=q"], ("q", 10.35)),
        ("cluster: {eps_rule: q, q: 8}", ["cluster.eps=0.6"], ("fixed", 0.6)),
        ("cluster: {eps_rule: p, p: 1.0e-3, q: 8, eps: 0.6}", [], ("p", 1e-3)),
    ],
)
def test_one_of_p_q_and_eps(tmp_path, recipe, settings, rule):
    (tmp_path / "mine.yaml").write_text(recipe)
    found = load_config(tmp_path / "mine.yaml", settings).cluster
    name, value = rule
    assert (found.eps_rule, getattr(found, VALUE_OF_RULE[found.eps_rule])) == rule
    assert found == ClusterConfig(**{VALUE_OF_RULE[name]: value}, k1=found.k1)


# What else a value needs, beside the condition that is looked at.
COMPANIONS = {
    "network.attention.relu_before_sigmoid": ["network.attention.zero_init=false"],
    "loss.triplet_margin": ["adapt.images_per_id=4"],
}
CONDITIONS = [
    (key, *found)
    for key, field in fields().items()
    for found in re.findall(r"([\w.]+)(!=|=|>)([^ ,]*)", conditions_of(field))
]


def another(key):
    """A value of the key that isn't its default."""
    field = fields()[key]
    if isinstance(field.default, bool) or bool in get_args(field.annotation):
        return not field.default
    if choices := [c for c in get_args(field.annotation) if isinstance(c, str | int)]:
        return next(choice for choice in choices if choice != field.default)
    whole = isinstance(field.default, int)
    return (
        0.5 if field.default is None else field.default + 1 if whole else field.default / 2 or 0.1
    )


def as_text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def without(key, name, sign, wanted):
    """The other key, and a value with which this one has no effect."""
    other = name if "." in name else f"{key.rpartition('.')[0]}.{name}"
    if sign == "!=":
        return other, wanted
    if sign == ">":
        return other, "0"
    return other, "hard" if "soft" in wanted else as_text(another(other))


@pytest.mark.parametrize(("key", "name", "sign", "wanted"), CONDITIONS)
def test_a_setting_without_effect_is_refused__and_a_recipes_is_dropped(
    key, name, sign, wanted, tmp_path
):
    other, value = without(key, name, sign, wanted)
    changed = f"{key}={as_text(another(key))}"
    together = [changed, f"{other}={value}", *COMPANIONS.get(key, [])]
    with pytest.raises(ConfigError) as caught:
        load_config(None, together)
    said = next(line for line in str(caught.value).splitlines() if line.startswith(f"{changed} "))
    assert re.fullmatch(
        rf"{re.escape(changed)} has no effect with {re.escape(other)}=\S+; leave it out, or .*\.",
        said,
    )
    # A recipe's value may lose its effect by a setting on the command line.
    kept = check_config(apply_overrides({}, together), kept=True)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(apply_overrides({}, [changed])))
    for config in (kept, load_config(recipe, [f"{other}={value}"])):
        assert flat(config.model_dump())[key] == fields()[key].default


# What a section is called where it is read, beside its own name and config.
ALIASES = {
    "source": {"settings", "dataset"},
    "target": {"settings", "dataset"},
    "pretrain": {"fit"},
    "adapt": {"fit"},
    "loss": {"weights"},
}


def test_every_key_is_read_somewhere():
    reads = {}
    for package in ("daal", "cluster", "pipelines"):
        for file in (ROOT / package).rglob("*.py"):
            if file.stem in ("config", "load_config", "old_config"):
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute):
                    of = getattr(node.value, "attr", getattr(node.value, "id", ""))
                    reads.setdefault(node.attr, set()).add(of)
    unread = [
        key
        for key in fields()
        for *_, section, name in [["config", *key.split(".")]]
        if not reads.get(name, set()) & {"config", section, *ALIASES.get(section, ())}
    ]
    assert unread == []


def test_there_are_at_most_105_keys__each_with_words():
    assert len(fields()) <= 105
    assert [key for key, field in fields().items() if not field.description] == []


def test_resolved_config_reads_back_the_same():
    config = load_config(RECIPES[0])
    assert check_config(config.model_dump(mode="json")) == config


def test_an_old_key_beside_the_one_of_today__is_said(caplog):
    config = load_config(None, ["accumulate=2", "pretrain.accumulate=4", "adapt.accumulate=4"])
    assert config.accumulate == 2
    assert "pretrain.accumulate and adapt.accumulate are not read" in caplog.text
