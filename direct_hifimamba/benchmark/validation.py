"""How the pydantic models of this package are validated, and how their errors read."""

import re
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def refuse_unknown_keys(cls: type, values: Any) -> Any:
    """Raise a ValueError that names the first unknown key and those that are allowed (a validator in mode `before`)."""
    allowed = list(getattr(cls, "__pydantic_fields__", {}))
    for key in values if isinstance(values, dict) else ():
        if key not in allowed:
            raise ValueError(f"the key {key!r} is unknown; expected {', '.join(allowed)}")
    return values


def first_error(error: ValidationError) -> str:
    """Return one sentence about the first error of a validation, with the key and, where it helps, its value."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    message = re.sub(
        "Input should be (?=greater|less)", "expected a number ", first["msg"].removeprefix("Value error, ")
    )
    message = message.replace("Input should be", "expected").replace("Dictionary should have", "expected")
    message = message.replace("Path does not point to", "expected")
    if first["type"] == "missing":
        return f"{key} is missing."
    if first["type"] == "value_error":
        return f"{key}: {message}." if key else f"{message}."
    value = str(first["input"]) if isinstance(first["input"], Path) else first["input"]
    return f"{key} is {value!r}; {message}."
