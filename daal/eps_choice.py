"""Which rule finds eps, and which setting of `cluster` it uses: one choice, made by either key."""

from typing import Any, Literal

from daal.errors import ConfigError

EpsRuleName = Literal["p", "q", "fixed"]
# Each rule for eps, and the setting of `cluster` whose value it uses.
VALUE_OF_RULE: dict[EpsRuleName, str] = {"p": "p", "q": "q", "fixed": "eps"}


def with_eps_rule(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of `cluster` with the rule that the given one of p, q and eps implies.

    Raises:
        ValueError: values of two rules and no rule, or one that its rule doesn't use. One that is
            the default passes, and so do all three: a run's own config.yaml has every key.
    """
    given = [rule for rule, name in VALUE_OF_RULE.items() if name in values]
    if "eps_rule" not in values:
        if len(given) > 1:
            names = " and ".join(f"cluster.{VALUE_OF_RULE[rule]}" for rule in given)
            rules = ", ".join(f"cluster.eps_rule={rule}" for rule in given)
            raise ValueError(
                f"{names} belong to different rules for eps; give only one of them, or say which "
                f"rule is meant ({rules})"
            )
        return {**values, "eps_rule": given[0]} if given else values
    if len(given) == len(VALUE_OF_RULE):
        return values
    for rule in given:
        name = VALUE_OF_RULE[rule]
        if rule != values["eps_rule"] and values[name] != defaults[name]:
            raise ValueError(_without_effect(f"{name}={values[name]}", rule, values["eps_rule"]))
    return values


def replace_eps_rule(old: Any, new: Any) -> None:
    """Drop from `old` settings of `cluster` the rule for eps that `new` ones replace.

    Raises:
        ConfigError: `new` has a value that its rule doesn't use.
    """
    if not isinstance(new, dict):
        return
    chosen = [rule for rule, name in VALUE_OF_RULE.items() if name in new]
    rule = new.get("eps_rule", chosen[0] if chosen else None)
    for other in chosen if "eps_rule" in new and rule in VALUE_OF_RULE else []:
        if other != rule:
            raise ConfigError(_without_effect(VALUE_OF_RULE[other], other, str(rule)) + ".")
    if rule is not None and isinstance(old, dict):
        for name in ("eps_rule", *(name for r, name in VALUE_OF_RULE.items() if r != rule)):
            old.pop(name, None)


def _without_effect(setting: str, rule: str, rule_in_force: str) -> str:
    return (
        f"cluster.{setting} has no effect with cluster.eps_rule={rule_in_force}; leave it out, or "
        f"set cluster.eps_rule={rule}"
    )
