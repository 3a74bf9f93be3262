"""Reading a recipe: preset, then YAML file, then `--set`; and writing it out again."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from driftrae_cli.config.validate import build, did_you_mean
from driftrae_cli.errors import ConfigError

Schema = TypeVar("Schema")

_SUFFIXES = (".yaml", ".yml")
_SHOWN = 40  # characters of a value in messages


def preset_names(kind: str) -> list[str]:
    """Names of the presets of one kind."""
    return [
        name
        for name, path in sorted(_preset_files().items())
        if _parse(path.read_text(), f"preset {name}").get("kind") == kind
    ]


def recipe_name(reference: str) -> str:
    """Short name of a recipe, for a run directory: a preset's own, or a file's stem.

    The resolved `config.yaml` of a run is named after the run's directory.
    """
    path = Path(reference)
    return path.resolve().parent.name if path.stem == "config" else path.stem


def load(reference: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Read a recipe and validate the whole of it at once.

    Args:
        reference: a preset's name or the path of a YAML file, whose key `preset` may name a
            preset to start from.
        overrides: `a.b=value` texts, values in YAML; they come last.
        schema: dataclass with a class variable `kind` that the recipe must have.

    Raises:
        ConfigError: unknown preset, YAML syntax, wrong kind, or any problem with a field.
    """
    values = _read(reference, schema)
    _check_kind(values.pop("kind", None), reference, schema)
    for text in overrides:
        values = _merge(values, _override(text))
    return build(schema, values, reference)


def dump(instance: Any, *, comments: bool = False) -> str:
    """YAML that `load` reads back as an equal instance; optionally with each field's meaning."""
    return "\n".join([f"kind: {instance.kind}", *_dump_lines(instance, "", comments)]) + "\n"


def decisive(instance: Any) -> dict[str, str]:
    """The fields that decide the result, which a resumed run must keep: dotted path and value."""
    return {path: text for path, text, may_change in _fields(instance) if not may_change}


def changeable(instance: Any) -> list[str]:
    """Dotted paths of the fields that a resumed run may have otherwise; `section.*` for all."""
    found = list[str]()
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not dataclasses.is_dataclass(value):
            found += [field.name] if field.metadata["may_change"] else []
        elif decisive(value):
            found += [f"{field.name}.{path}" for path in changeable(value)]
        else:
            found.append(f"{field.name}.*")
    return found


def _preset_files() -> dict[str, Any]:
    folder = files("driftrae_cli.config") / "presets"
    return {Path(p.name).stem: p for p in folder.iterdir() if p.name.endswith(_SUFFIXES)}


def _read(reference: str, schema: Any) -> dict[str, Any]:
    presets = _preset_files()
    if reference in presets:
        return _parse(presets[reference].read_text(), f"preset {reference}")
    path = Path(reference)
    if path.suffix not in _SUFFIXES and not path.exists():
        raise ConfigError(_unknown_preset(reference, schema))
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{reference}: cannot be read ({reason})") from error
    values = _parse(text, reference)
    base = values.pop("preset", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{reference}: preset: expected one name")
    if base not in presets:
        raise ConfigError(f"{reference}: preset: {_unknown_preset(base, schema)}")
    return _merge(_parse(presets[base].read_text(), f"preset {base}"), values)


def _unknown_preset(name: str, schema: Any) -> str:
    known = preset_names(schema.kind)
    return (
        f"no recipe '{name}'{did_you_mean(name, known)}\n"
        f"Presets: {', '.join(known)}. Or give the path of a file that ends in .yaml."
    )


def _parse(text: str, source: str) -> dict[str, Any]:
    """Raises ConfigError for bad syntax, a repeated key, or something that is no mapping."""
    node, values = _yaml(text, source)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected 'name: value' lines")
    _check_repeats(node, source)
    return values


def _yaml(text: str, source: str) -> tuple[yaml.Node | None, Any]:
    """What the text says, as nodes with their places and as values.

    Raises:
        ConfigError: bad syntax, an alias, a value that is impossible, or too deep nesting.
    """
    try:
        # Comes before the scan, which takes minutes for the nesting that ends this at once.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                hint = "recipes have no aliases; write it out"
                raise ConfigError(f"{source}: *{token.value}: {hint}")
        for scalar in _scalars(node):
            _check_scalar(scalar)
        return node, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        place = _place(error) if "\n" in text else ""
        raise ConfigError(f"{source}{place}: not valid YAML ({_reason(error)})") from error


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The single values at and below a node, without names of fields."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _scalars(value)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalars(value)


def _check_scalar(node: yaml.ScalarNode) -> None:
    """The library itself lets through, without a place, what `int` and `date` raise."""
    try:
        yaml.SafeLoader("").construct_object(node)
    except (ValueError, OverflowError, LookupError, AttributeError) as error:
        shown = node.value if len(node.value) <= _SHOWN else f"{node.value[:_SHOWN]}…"
        raise yaml.MarkedYAMLError(
            problem=f"{shown} looks like a date or number but is none; put text in quotes",
            problem_mark=node.start_mark,
        ) from error


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return getattr(error, "problem", None) or str(error)


def _check_repeats(node: yaml.Node | None, source: str) -> None:
    """YAML itself silently keeps the last of two equal keys."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise ConfigError(
                f"{source}, line {line}: {key.value} was set before, on line {seen[key.value]}"
            )
        seen[key.value] = line
        _check_repeats(value, source)


def _check_kind(found: Any, reference: str, schema: Any) -> None:
    if found == schema.kind:
        return
    if found is None:
        raise ConfigError(f"{reference}: add the line 'kind: {schema.kind}' at the top")
    raise ConfigError(
        f"{reference}: is a recipe of kind '{found}', this command reads '{schema.kind}'"
        f"\nPresets of that kind: {', '.join(preset_names(schema.kind))}."
    )


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: write it as name=value or section.name=value")
    node, nested = _yaml(value, f"--set {text}")
    _check_repeats(node, f"--set {text}")
    for key in reversed(keys):
        nested = {key: nested}
    return typing.cast(dict[str, Any], nested)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and (value is None or isinstance(value, Mapping)):
            # A section with nothing in it changes nothing.
            merged[key] = _merge(below, value or {})
        else:
            merged[key] = value
    return merged


def _fields(instance: Any, section: str = "") -> Iterator[tuple[str, str, bool]]:
    """Dotted path and value of each field, and whether it may change when a run is resumed."""
    for field in dataclasses.fields(instance):
        value, path = getattr(instance, field.name), f"{section}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{path}.")
        else:
            yield path, _dump_value(value), field.metadata["may_change"]


def _dump_lines(instance: Any, indent: str, comments: bool) -> list[str]:
    lines = list[str]()
    for field in dataclasses.fields(instance):
        value, doc = getattr(instance, field.name), field.metadata["doc"]
        comment = f"  # {doc}" if comments else ""
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:{comment}")
            lines += _dump_lines(value, indent + "  ", comments)
        else:
            lines.append(f"{indent}{field.name}: {_dump_value(value)}{comment}")
    return lines


def _dump_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
