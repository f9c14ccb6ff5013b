"""An extraction trains nothing, so it runs on any number of workers."""

import pytest

from daal.errors import ConfigError
from daal.load_config import apply_overrides, check_config
from pipelines.tools.extract_folder import for_any_workers


@pytest.mark.parametrize("workers", [1, 3, 5, 7])
def test_any_number_of_workers(workers: int) -> None:
    values = apply_overrides({"flip_test": True}, [f"ray.num_workers={workers}"])
    config = check_config(for_any_workers(values))
    assert config.ray.num_workers == workers and config.flip_test


@pytest.mark.parametrize("value", ["0", "many", "{}"])
def test_a_number_that_is_none__is_refused_by_its_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"ray\.num_workers"):
        check_config(for_any_workers(apply_overrides({}, [f"ray.num_workers={value}"])))
