"""What all sections of a configuration have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Frozen, and refuses keys it doesn't know, numbers that aren't finite, and true for 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, which Python would take for 1.
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = (kind, *get_args(kind))
        is_number = any(k in (int, float) or type(k) is int for k in kinds)
        if isinstance(value, bool) and is_number and bool not in kinds:
            raise PydanticCustomError("number", "Input should be a number, not true or false")
        return value
