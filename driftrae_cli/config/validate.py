"""From nested mappings to a schema's instance, or the list of everything that is wrong."""

import dataclasses
import difflib
import math
import operator
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from driftrae_cli.config.fields import Contradiction, limit_violated
from driftrae_cli.errors import ConfigError

Schema = TypeVar("Schema")

_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}  # that everything downstream can hold
_DIGITS_SHOWN = 20  # of a whole number in messages


class _InvalidError(Exception):
    """One value that does not fit; the text completes "path: "."""


class _OutOfRangeError(_InvalidError):
    """A value of the right type beyond its limits."""


@runtime_checkable
class _Contradictable(Protocol):
    def contradictions(self) -> list[Contradiction]: ...


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, empty where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def build(schema: type[Schema], values: Mapping[str, Any], source: str) -> Schema:
    """Build `schema` from nested `values`.

    Raises:
        ConfigError: all unknown, missing, mistyped, out-of-range and contradictory fields.
    """
    findings = _Findings(list(_leaf_paths(schema)))
    instance = _build_section(schema, values, "", findings)
    problems = findings.problems
    if instance is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{source}: {count}", *(f"  {text}" for text in problems)]))
    return instance


@dataclasses.dataclass(frozen=True)
class _Findings:
    """What is wrong so far, and the dotted paths that could have been meant."""

    known: list[str]
    problems: list[str] = dataclasses.field(default_factory=list)

    def unknown(self, path: str) -> None:
        name = path.rsplit(".", 1)[-1]
        elsewhere = [p for p in self.known if p.rsplit(".", 1)[-1] == name]
        hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
        self.problems.append(f"{path}: unknown{hint or did_you_mean(path, self.known)}")


def _leaf_paths(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaf_paths(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def _hints(schema: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _build_section(
    schema: type[Schema], values: Any, prefix: str, findings: _Findings
) -> Schema | None:
    """The instance, or None once something was added to the findings."""
    problems = findings.problems
    before = len(problems)
    given = _read_fields(schema, {} if values is None else values, prefix, findings)
    if len(problems) > before:
        return None
    instance = schema(**given)
    if isinstance(instance, _Contradictable):
        problems += [_describe(c, instance, prefix) for c in instance.contradictions()]
    return instance if len(problems) == before else None


def _read_fields(schema: Any, values: Any, prefix: str, findings: _Findings) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        found = f"expected fields below it, got {_shown(values)}"
        findings.problems.append(f"{prefix.rstrip('.')}: {found}")
        return {}
    hints = _hints(schema)
    for key in values:
        if key not in hints:
            findings.unknown(f"{prefix}{key}")
    given: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        name, hint, path = field.name, hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type, hint)
            given[name] = _build_section(section, values.get(name), f"{path}.", findings)
        elif name in values:
            try:
                given[name] = _convert(values[name], hint, field.metadata)
            except _InvalidError as error:
                findings.problems.append(f"{path}: {error}")
        elif field.default is dataclasses.MISSING:
            findings.problems.append(f"{path}: missing ({field.metadata['doc']})")
    return given


def _describe(contradiction: Contradiction, instance: object, prefix: str) -> str:
    named = [
        f"{prefix}{name} ({_shown(operator.attrgetter(name)(instance))})"
        for name in contradiction.fields
    ]
    return f"{' and '.join(named)}: {contradiction.reason}"


def _convert(value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _convert_tuple(value, arguments, limits)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(value, arguments, limits)
    if origin is Literal:
        return _convert_choice(value, arguments)
    if hint is type(None):
        if value is not None:
            raise _InvalidError(f"expected null, got {_shown(value)}")
        return None
    if hint in (int, float):
        return _convert_number(value, hint, limits)
    wanted = {bool: "true or false", str: "text"}[hint]
    if not isinstance(value, hint):
        raise _InvalidError(f"expected {wanted}, got {_shown(value)}")
    return value


def _convert_tuple(value: Any, hints: tuple[Any, ...], limits: Mapping[str, Any]) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * max(1, len(values))
    if len(values) != len(hints):
        raise _InvalidError(f"expected a list of {len(hints)} values, got {_shown(value)}")
    return tuple(_convert(v, hint, limits) for v, hint in zip(values, hints, strict=True))


def _convert_union(value: Any, hints: tuple[Any, ...], limits: Mapping[str, Any]) -> Any:
    """The first of `hints` that takes the value; their complaints otherwise."""
    complaints = []
    for hint in hints:
        try:
            return _convert(value, hint, limits)
        except _OutOfRangeError:
            raise
        except _InvalidError as error:
            complaints.append(str(error))
    wanted = " or ".join(text.split(", got ")[0].removeprefix("expected ") for text in complaints)
    raise _InvalidError(f"expected {wanted}, got {_shown(value)}")


def _convert_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise _InvalidError(f"expected {' | '.join(choices)}, got {_shown(value)}{hint}")
    return value


def _convert_number(value: Any, hint: type, limits: Mapping[str, Any]) -> Any:
    number = _read_number(value)
    wanted = "a whole number" if hint is int else "a number"
    # Not `isfinite`, which takes no whole number beyond the largest float.
    if number is None or not abs(number) < math.inf or (hint is int and number % 1):
        raise _InvalidError(f"expected {wanted}, got {_shown(value)}")
    complaint = limit_violated(number, limits)
    if not complaint and abs(number) > _LARGEST[hint]:
        complaint = f"must be at most {_LARGEST[hint]}"
    if complaint:
        raise _OutOfRangeError(f"{complaint}, got {_shown(value)}")
    return hint(number)


def _read_number(value: Any) -> int | float | None:
    """YAML 1.1 takes 3e-5 for text, because it lacks a dot; people write it all the time."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _shown(value: Any) -> str:
    names = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return names[value]
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, int) and abs(value) >= 10**_DIGITS_SHOWN:
        return f"a number of more than {_DIGITS_SHOWN} digits"
    return f"{value:g}" if isinstance(value, float) else str(value)
