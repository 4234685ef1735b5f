"""A dictionary of settings, turned into dataclasses field by field.

Unknown, missing and mistyped fields are refused by their full path, so that a
misspelt setting is never a silently ignored one.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class ConfigError(ValueError):
  """A config that cannot run; the message names the field and what to do."""


def check_at_least(section: Any, least: float, *fields: str) -> None:
  """Raises ConfigError for the first field of a dataclass below `least`."""
  for field in fields:
    value = getattr(section, field)
    if not value >= least:
      raise ConfigError(f'{field} must be at least {least}, got {value}')


def from_config_dict(cls: type, config: Any, path: str = 'config') -> Any:
  """Builds dataclass `cls` from a `ConfigDict` or dict, checking every field.

  Raises:
    ConfigError: an unknown, missing or mistyped field, named by its path.
  """
  return _build(cls, plain_dict(config), path)


def plain_dict(config: Any) -> dict[str, Any]:
  """A `ConfigDict`, or what stands in for one, as nested dictionaries."""
  return config.to_dict() if hasattr(config, 'to_dict') else dict(config)


def fill_defaults(cls: type, config: Any) -> None:
  """Gives an unlocked `ConfigDict` of `cls` the fields that have a default.

  In its sections too; what it lacks or has amiss is `from_config_dict`'s to
  refuse.
  """
  types_of = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    if field.name in config:
      _fill(types_of[field.name], config[field.name])
    elif field.default is not dataclasses.MISSING:
      value = field.default
      if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
      config[field.name] = value


def _fill(kind, value):
  if not hasattr(value, 'to_dict'):
    return
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is dict:
    for item in value.values():
      _fill(args[1], item)
  if origin in (typing.Union, types.UnionType) and 'kind' in value:
    kind = _by_kind(args).get(value.kind)
  if dataclasses.is_dataclass(kind):
    fill_defaults(kind, value)


def _build(kind, value, path):
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, path)
  if origin in (typing.Union, types.UnionType):
    return _build_tagged(args, value, path)
  if origin is dict:
    if not isinstance(value, Mapping):
      raise ConfigError(f'{path}: expected a dictionary, got {value!r}')
    return {
      key: _build(args[1], item, f'{path}.{key}') for key, item in value.items()
    }
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f'{path}: expected a tuple, got {value!r}')
    return tuple(_build(args[0], item, path) for item in value)
  if origin is Literal:
    if value not in args:
      raise ConfigError(
        f'{path}: {value!r} is not one of {", ".join(map(str, args))}'
      )
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise ConfigError(
      f'{path}: expected {kind.__name__}, got {type(value).__name__} {value!r}'
    )
  return value


def _build_dataclass(cls, value, path):
  if not isinstance(value, Mapping):
    raise ConfigError(f'{path}: expected a section, got {value!r}')
  known = {field.name: field for field in dataclasses.fields(cls)}
  for key in value:
    if key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      hint = f'did you mean {close[0]}?' if close else f'has {", ".join(known)}'
      raise ConfigError(f'{path}.{key}: no such field; {hint}')
  types_of = typing.get_type_hints(cls)
  built = {}
  for name, field in known.items():
    if name in value:
      built[name] = _build(types_of[name], value[name], f'{path}.{name}')
    elif field.default is field.default_factory:  # MISSING, both
      raise ConfigError(f'{path}.{name} is missing')
  try:
    return cls(**built)
  except ConfigError as error:
    raise ConfigError(f'{path}.{error}') from None


def _build_tagged(classes, value, path):
  """One of several dataclasses, told apart by the literal of their `kind`."""
  by_kind = _by_kind(classes)
  kind = value.get('kind') if isinstance(value, Mapping) else None
  if kind not in by_kind:
    raise ConfigError(
      f'{path}.kind: {kind!r} is not one of {", ".join(by_kind)}'
    )
  return _build_dataclass(by_kind[kind], value, path)


def _by_kind(classes):
  return {
    typing.get_args(typing.get_type_hints(cls)['kind'])[0]: cls
    for cls in classes
  }
