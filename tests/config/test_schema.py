"""Every field of every schema is documented, and its default obeys its own limits."""

import dataclasses
import typing

import pytest

from driftrae_cli.config.fields import limit_violated
from driftrae_cli.config.schema import DistillConfig, PretrainConfig


def leaves(schema, prefix=""):
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            assert field.metadata["doc"], prefix + field.name
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield pytest.param(field, id=f"{schema.__name__}.{field.name}")


FIELDS = [*leaves(DistillConfig), *leaves(PretrainConfig)]


@pytest.mark.parametrize("field", FIELDS)
def test_field_is_documented_and_its_default_allowed(field):
    assert field.metadata["doc"].strip()
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert limit_violated(value, field.metadata) is None


@pytest.mark.parametrize("schema", [DistillConfig, PretrainConfig])
def test_defaults_do_not_contradict_each_other(schema):
    for hint in typing.get_type_hints(schema).values():
        if hasattr(hint, "contradictions"):
            assert hint().contradictions() == []
