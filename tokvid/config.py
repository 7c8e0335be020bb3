"""Frozen keyword-only dataclasses from plain mappings, and back.

A configuration lives beside the class it configures. A union of dataclasses is closed: each member has a
``kind: Literal[...]`` field, and the mapping's ``kind`` chooses. What was a single dataclass can become a union: the
member whose ``kind`` is marked :data:`ADDED_LATER` is what a mapping without a kind means. Unknown keys, wrong types
and missing fields raise :class:`ConfigError` with the dotted place. Nothing is imported by name, nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from tokvid.errors import ConfigError, did_you_mean

T = TypeVar("T")

# Metadata of a field that an earlier version did not have: ``field(default=..., metadata=ADDED_LATER)``. Its default
# must mean what was done before there was the field. See identity(); of a ``kind`` see also the docstring above.
ADDED_LATER = types.MappingProxyType({"added_later": True})


def from_mapping(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass ``cls`` from ``data``; ``where`` is the dotted place named in errors."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'}: expected a mapping, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            place = f"{where}." if where else ""
            hint = ""
            if where and "kind" in fields and "kind" in data:
                hint = f" (a section of another kind is given whole: --{where}='{{kind: {data['kind']}}}')"
            raise ConfigError(f"unknown key '{place}{key}': {did_you_mean(str(key), fields)}{hint}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        place = f"{where}.{name}" if where else name
        if name in data:
            values[name] = _convert(hints[name], data[name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"'{place}' is missing")
    try:
        return cls(**values)
    except ValueError as error:  # also a ConfigError: what the dataclass says of itself does not know its place
        place = where or ("" if isinstance(error, ConfigError) else cls.__name__)
        raise ConfigError(f"{place}: {error}" if place else str(error)) from error


def from_union(union: Any, data: Mapping[str, Any], *, where: str = "") -> Any:
    """:func:`from_mapping` of that dataclass of the ``union`` (``A | B``) which the ``kind`` of ``data`` names."""
    return from_mapping(_member(get_args(union), data, where), data, where=where)


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of :func:`from_mapping`: plain dictionaries, lists, strings and numbers."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def identity(config: Any) -> dict[str, Any]:
    """:func:`to_mapping` without the fields marked :data:`ADDED_LATER` that have their default.

    What names a saved thing by a digest digests this: the name then stays the same when a later version adds a field.
    """
    mapping: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.init and not (field.metadata.get("added_later") and value == _default(field)):
            is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
            mapping[field.name] = identity(value) if is_section else _plain(value)
    return mapping


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with each ``a.b=value`` (leading dashes allowed) set; values are YAML."""
    result: dict[str, Any] = _copied(data)
    for override in overrides:
        path, equals, text = override.lstrip("-").partition("=")
        if not equals or not path:
            raise ConfigError(f"an override is written --a.b=value, got {override!r}")
        node = result
        *parents, last = path.split(".")
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: '{name}' is not a section")
            node = child
        try:
            node[last] = _copied({last: yaml.safe_load(text)})[last]
        except yaml.YAMLError as error:
            raise ConfigError(f"override {_shortened(override)}: the value is not YAML") from error
        except ConfigError as error:
            raise ConfigError(f"override {_shortened(override)}: {error}") from error
        except RecursionError:
            raise ConfigError(f"override {_shortened(override)}: the value is nested too deeply") from None
    return result


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``data`` that shares nothing with it; an anchor of YAML can put a section into itself."""
    return {str(key): _copy(value, str(key), ()) for key, value in data.items()}


def _copy(value: Any, place: str, around: tuple[int, ...]) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        return value
    if id(value) in around:
        raise ConfigError(f"'{place}' holds itself: an anchor (&) is used inside what it names")
    around = (*around, id(value))
    if isinstance(value, Mapping):
        return {str(k): _copy(v, place, around) for k, v in value.items()}
    return [_copy(v, place, around) for v in value]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, place)
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"'{place}': expected one of {list(get_args(hint))}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return from_mapping(hint, value, where=place)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_tuple(hint, value, place)
    if origin is dict or origin is Mapping or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{place}': expected a mapping, got {value!r}")
        inner = get_args(hint)[1] if get_args(hint) else Any
        return {key: _convert(inner, each, f"{place}.{key}") for key, each in _copied(value).items()}
    return _convert_scalar(hint, value, place)


def _convert_union(hint: Any, value: Any, place: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, place)
    classes = [o for o in options if dataclasses.is_dataclass(o)]
    if any(isinstance(value, c) for c in classes):  # type: ignore[arg-type]
        return value
    if classes:
        return _convert(_member(classes, value, place), value, place)
    for option in options:
        try:
            return _convert(option, value, place)
        except ConfigError:
            continue
    raise ConfigError(f"'{place}': expected {hint}, got {value!r}")


def _member(classes: Sequence[Any], value: Any, place: str) -> Any:
    """The one of ``classes`` that the mapping ``value`` describes."""
    by_kind = {get_args(typing.get_type_hints(c)["kind"])[0]: c for c in classes}
    if not isinstance(value, Mapping):
        expected = f"expected a section with a kind of {sorted(by_kind)}, got {value!r}"
        raise ConfigError(f"'{place}': {expected}" if place else expected)
    before = [c for c in classes for f in dataclasses.fields(c) if f.name == "kind" and f.metadata.get("added_later")]
    if "kind" not in value and len(before) == 1:
        return before[0]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in by_kind:
        name = f"{place}.kind" if place else "kind"
        raise ConfigError(f"'{name}' is {kind!r}: {did_you_mean(str(kind), by_kind)}")
    return by_kind[kind]


def _convert_tuple(hint: Any, value: Any, place: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"'{place}': expected a list, got {value!r}")
    inner = get_args(hint)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_convert(inner[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if len(inner) != len(value):
        raise ConfigError(f"'{place}': expected {len(inner)} values, got {len(value)}")
    return tuple(_convert(h, v, f"{place}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, place: str) -> Any:
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 3e-4 as a string; every recipe author writes it.
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"'{place}': expected a number, got {value!r}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and "\0" in value:  # no file system and no model has such a name
        raise ConfigError(f"'{place}': a text with a NUL character names nothing, got {value!r}")
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    raise ConfigError(f"'{place}': expected {hint.__name__}, got {value!r}")
