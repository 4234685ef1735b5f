"""Official examples: JSON Lines whose fields are checked before all else.

A model may be asked for hours; what is wrong with line 300 is said before.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longctx_jax.config_from_dict import ConfigError


class Field(NamedTuple):
  """What a field of every line has to be."""

  what: str  # for messages
  fits: Callable[[Any], bool]


TEXT = Field('a text', lambda value: isinstance(value, str))


def read_examples(
  path: Path, needed: Mapping[str, Field]
) -> Iterator[tuple[int, dict[str, Any]]]:
  """(line, object) of a JSON Lines file whose objects have fields `needed`.

  Raises:
    ConfigError: a line that is none, or no line at all; names file and line.
  """
  found = False
  for number, line in _lines(path):
    where = f'{path}, line {number}'
    if not line.strip():
      continue
    found = True
    try:
      # Files written on Windows may begin with a byte order mark.
      fields = json.loads(line.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
      raise ConfigError(f'{where}: no JSON object in UTF-8') from error
    if not isinstance(fields, dict):
      raise ConfigError(f'{where}: no JSON object')
    for name, field in needed.items():
      if name not in fields:
        raise ConfigError(f'{where}: no field {name!r}')
      if not field.fits(fields[name]):
        shown = json.dumps(fields[name])
        shown = shown if len(shown) <= 40 else f'{shown[:40]}...'
        raise ConfigError(
          f'{where}: the field {name!r} must be {field.what}, and is {shown}'
        )
    yield number, fields
  if not found:
    raise ConfigError(f'{path} holds no examples: give a JSON Lines file')


def _lines(path) -> Iterator[tuple[int, bytes]]:
  try:
    with path.open('rb') as file:
      yield from enumerate(file, 1)
  except OSError as error:
    raise ConfigError(f'cannot read {path}: {error.strerror}') from error
