"""Recipes and overrides: what parses, and what is said when something doesn't."""

from pathlib import Path

import pytest
import yaml

from daal.config import ClusterConfig, Config
from daal.eps_choice import VALUE_OF_RULE
from daal.errors import ConfigError
from daal.load_config import PATHS, apply_overrides, check_config, flat, known_keys, load_config
from pipelines.tools.shipped import read_config

RECIPES = sorted((Path(__file__).parents[2] / "pipelines" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(recipe: Path) -> None:
    assert isinstance(load_config(recipe), Config)


def test_recipe_paper__is_the_printed_text() -> None:
    config = load_config(next(path for path in RECIPES if path.stem == "paper"))
    assert (config.input.height, config.input.width) == (384, 128)
    assert config.adapt.epochs == 260
    assert config.adapt.batch_source + config.adapt.batch_target == 32
    assert (config.adapt.optim.lr_backbone, config.adapt.optim.lr_new) == (1.5e-4, 3e-5)
    assert config.adapt.optim.momentum == 0.9
    assert (config.soft_labels.epsilon, config.soft_labels.form) == (0.9, "literal")
    assert config.network.backbone == "resnet50"


def test_overrides__win_over_the_file_and_are_typed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\ncluster: {eps: 0.4, k1: 30}\n")
    config = load_config(file, ["cluster.eps=0.6", "adapt.steps_per_epoch=null"])
    assert (config.seed, config.cluster.eps, config.cluster.k1) == (3, 0.6, 30)
    assert config.adapt.steps_per_epoch is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("adapt.epoch=3", ['"adapt.epoch" is not a known key', 'did you mean "adapt.epochs"']),
        ("adapt.epochs=0", ["adapt.epochs=0", "greater than 0", 'from override "adapt.epochs=0"']),
        ("network.backbone=vgg", ["network.backbone='vgg'", "resnet18"]),
        ("nonsense", ["is not KEY=VALUE"]),
        ("seed=[1", ["is not valid YAML"]),
        ("adapt.batch_target=15", ["adapt.batch_target=15 is not divisible by ray.num_workers=2"]),
        ("adapt.images_per_id=5", ["not divisible by adapt.images_per_id=5"]),
        ("zzz=1", ['"zzz" is not a known key', "config show"]),
        ("cluster=3", ["cluster=3"]),
        ("pretrain.images_per_id=4", ["pretrain.images_per_id=4"]),
        ("network.attention.relu_before_sigmoid=true", ["zero_init=false"]),
    ],
)
def test_mistakes__name_the_key_and_the_remedy(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", PATHS)
def test_a_home_folder_that_no_shell_expanded(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(apply_overrides({}, [f"{key}=~/a b"])))
    for config in (load_config(None, [f"{key}=~/a b"]), load_config(file)):
        assert flat(config.model_dump())[key] == f"{tmp_path}/a b"
    elsewhere = load_config(file, expand_home=False)  # expanded on the machine that runs it
    assert flat(elsewhere.model_dump())[key] == "~/a b"
    with pytest.raises(ConfigError, match=r"begins with a home folder that isn't known here"):
        load_config(None, [f"{key}=~nobody-of-this-name/x"])


@pytest.mark.parametrize(
    ("text", "means"), [("010", 8), ("-0_7", -7), ("1:30", 90), ("1:30.5", 90.5)]
)
def test_numbers_that_yaml_reads_as_others(text: str, means: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{text} means {means} there"):
        load_config(None, [f"ray.wait_minutes={text}"])
    file = tmp_path / "mine.yaml"
    file.write_text(f"ray: {{wait_minutes: {text}}}\n")
    with pytest.raises(ConfigError, match=rf"{text} means {means} there"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("1_000", 1000), ("0x10", 16), ("0.5", 0.5)]
)
def test_numbers_that_mean_what_they_say(text: str, value: float) -> None:
    assert load_config(None, [f"ray.wait_minutes={text}"]).ray.wait_minutes == value


@pytest.mark.parametrize("value", ["/data/run #1", "# all of it", "'a' # b"])
def test_the_end_of_a_value_is_no_comment(value: str) -> None:
    with pytest.raises(ConfigError, match="with which YAML begins a comment"):
        load_config(None, [f"target.root={value}"])
    assert load_config(None, ["target.root='/data/run #1'"]).target.root == "/data/run #1"
    assert load_config(None, ["target.root=/data/run#1"]).target.root == "/data/run#1"


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_weights_v2__are_of_resnet50_alone(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"imagenet-v2 needs network\.backbone=resnet50"):
        load_config(None, ["network.weights=imagenet-v2", f"network.backbone={backbone}"])


def test_mistakes_in_a_file__name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("clutser: {eps: 0.4}\n")
    with pytest.raises(ConfigError, match=r"typo.yaml"):
        load_config(file)
    file.write_text("seed: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file)
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load_config(file)
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path / "absent.yaml")


def test_several_mistakes__each_on_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=-1", "iterations=x"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["adapt.batch_source=0", "adapt.batch_target=0"], "are both 0"),
        (["adapt.optim.nesterov=true", "adapt.optim.momentum=0"], "momentum above 0"),
    ],
)
def test_settings_that_exclude_each_other(overrides: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("recipe", "overrides", "common"),
    [
        ("modern", ["ray.min_workers=1", "ray.num_workers=4"], 64),
        ("udap", ["ray.num_workers=1", "adapt.accumulate=4"], 32),
        ("ssg", ["ray.num_workers=2", "adapt.batch_target=24", "adapt.accumulate=2"], 4),
        ("fast", ["ray.min_workers=1", "ray.num_workers=7"], 16),
    ],
)
def test_batches_of_any_range_of_workers__and_parts_of_whole_identities(
    recipe: str, overrides: list[str], common: int
) -> None:
    assert read_config(recipe, overrides).common_batch == common


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapt.accumulate=16"],  # two images an identity and part
        ["adapt.batch_target=40", "adapt.accumulate=4"],
        ["adapt.accumulate=8", "adapt.images_per_id=4"],  # one identity a part
        ["adapt.batch_target=4"],
    ],
)
@pytest.mark.parametrize("recipe", ["udap", "ssg"])
def test_parts_in_which_the_triplet_loss_would_be_0__are_refused(
    recipe: str, overrides: list[str]
) -> None:
    small = ["ray.num_workers=1", "adapt.batch_target=32", "pretrain.batch_source=32"]
    with pytest.raises(ConfigError, match=r"adapt\.batch_target=.*adapt\.images_per_id=4"):
        read_config(recipe, [*small, *overrides])


@pytest.mark.parametrize(
    ("recipe", "settings", "rule"),
    [
        ("", [], ("p", 1.6e-3)),
        ("", ["cluster.eps=0.6"], ("fixed", 0.6)),
        ("", ["cluster.eps=0.5"], ("fixed", 0.5)),
        ("", ["cluster={q: 8}"], ("q", 8)),
        ("cluster: {p: 1.0e-3}", [], ("p", 1e-3)),
        ("cluster: {eps: 0.4}", [], ("fixed", 0.4)),
        ("cluster: {eps_rule: q, q: 8}", ["cluster.eps=0.6"], ("fixed", 0.6)),
        ("cluster: {eps_rule: fixed, eps: 0.4}", ["cluster.p=1e-3"], ("p", 1e-3)),
        ("cluster: {eps_rule: fixed, eps: 0.4}", ["cluster.eps_rule=q"], ("q", 10.35)),
        ("cluster: {eps: 0.4}", ["cluster.k1=10"], ("fixed", 0.4)),
        ("cluster: {q: 8}", ["cluster.eps_rule=q"], ("q", 8)),
    ],
)
def test_the_rule_of_eps_follows_from_its_value(
    tmp_path: Path, recipe: str, settings: list[str], rule: tuple[str, float]
) -> None:
    (tmp_path / "mine.yaml").write_text(recipe)
    found = load_config(tmp_path / "mine.yaml", settings).cluster
    value = {"p": found.p, "q": found.q, "fixed": found.eps}[found.eps_rule]
    assert (found.eps_rule, value) == rule
    # What the rule doesn't use is as if it had never been given.
    assert load_config(tmp_path / "mine.yaml", settings).cluster == ClusterConfig(
        eps_rule=rule[0], **{VALUE_OF_RULE[rule[0]]: rule[1]}, k1=found.k1
    )


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("", ["cluster.eps_rule=p", "cluster.eps=0.6"],
         r"cluster\.eps has no effect with cluster\.eps_rule=p; .*cluster\.eps_rule=fixed"),
        ("", ["cluster.eps_rule=q", "cluster.eps=0.5"], r"cluster\.eps has no effect"),
        ("", ["cluster.eps_rule=q", "cluster.eps=0.6", "cluster.p=1e-3", "cluster.q=9"],
         r"cluster\.p has no effect with cluster\.eps_rule=q"),
        ("cluster: {eps_rule: fixed, q: 8}", [], r"cluster\.q=8 has no effect"),
        ("", ["cluster.q=8", "cluster.p=1e-3"], r"cluster\.p and cluster\.q belong to different"),
        ("cluster: {p: 1.0e-3, eps: 0.6}", [], r"cluster\.p and cluster\.eps .*eps_rule=fixed"),
    ],
)  # fmt: skip
def test_a_value_that_the_rule_of_eps_does_not_use_is_refused(
    tmp_path: Path, recipe: str, settings: list[str], said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(recipe)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "mine.yaml", settings)


def test_a_runs_own_configuration_is_read__also_one_of_release_0_1_with_an_unused_eps() -> None:
    values = load_config(None, ["cluster.eps_rule=p"]).model_dump(mode="json")
    values["cluster"]["eps"] = 0.6  # as release 0.1 accepted
    kept = check_config(values)
    assert (kept.cluster.eps_rule, kept.cluster.eps) == ("p", 0.6)
    assert check_config(kept.model_dump(mode="json")) == kept
    changed = check_config(apply_overrides(kept.model_dump(), ["cluster.q=8"])).cluster
    assert (changed.eps_rule, changed.q, changed.eps) == ("q", 8, 0.5)


def test_independent_attention_needs_its_branch() -> None:
    with pytest.raises(ConfigError, match="specific_branch"):
        load_config(None, ["network.attention.mode=independent", "network.specific_branch=false"])


def test_resolved_config_reads_back_the_same() -> None:
    config = load_config(RECIPES[0])
    assert check_config(config.model_dump(mode="json")) == config


def test_every_key_has_a_home() -> None:
    assert "cluster.eps" in known_keys()
    assert "adapt.optim.lr_new" in known_keys()
    assert "network.attention.mode" in known_keys()
