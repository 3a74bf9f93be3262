"""How a schema declares a field: default, one line of documentation, and its limits."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """Fields that are fine by themselves but not together.

    Attributes:
        fields: their names, dotted from the class that finds the contradiction.
        reason: why, and what to do; the reader sees names and values before it.
    """

    fields: tuple[str, ...]
    reason: str


REQUIRED: Any = dataclasses.MISSING


def setting(
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    multiple_of: int | None = None,
    may_change: bool = False,
) -> Any:
    """A field of a schema; use `REQUIRED` for one without a default.

    The limits hold for a number and for every number of a list: `min` and `max` are allowed
    values, `above` is not. Fixed choices are declared by the type, as `Literal[...]`.
    `may_change` marks a field without influence on the result, which a resumed run may have
    otherwise.
    """
    limits = {"min": min, "max": max, "above": above, "multiple_of": multiple_of}
    metadata = {"doc": doc, "may_change": may_change, **limits}
    return dataclasses.field(default=default, metadata=metadata)


def section(schema: type, doc: str) -> Any:
    """A field that is a schema itself."""
    return dataclasses.field(default_factory=schema, metadata={"doc": doc, "may_change": False})


def limit_violated(number: float, limits: Mapping[str, Any]) -> str | None:
    """What a field's metadata has against `number`, as in "must be at least 1"; else None."""
    if limits["min"] is not None and number < limits["min"]:
        return f"must be at least {limits['min']}"
    if limits["above"] is not None and number <= limits["above"]:
        return f"must be above {limits['above']}"
    if limits["max"] is not None and number > limits["max"]:
        return f"must be at most {limits['max']}"
    if limits["multiple_of"] is not None and number % limits["multiple_of"]:
        return f"must be a multiple of {limits['multiple_of']}"
    return None
