"""The settings of all stages side by side, by their paths in the config."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from longctx_jax.config import StageConfig

ABSENT = '\N{EN DASH}'  # stands for what a stage does not have


class Setting(NamedTuple):
  """A config field, and its value in each stage."""

  path: str
  values: list[str]
  changed: list[bool]  # has another value than in the stage before


def compare_settings(
  stages: Sequence[StageConfig],
) -> tuple[list[Setting], list[Setting]]:
  """The settings that differ between stages, and those that don't.

  The name and the source are shown apart.
  """
  flat = [flatten(dataclasses.asdict(stage)) for stage in stages]
  differing, same = [], []
  for path in dict.fromkeys(path for values in flat for path in values):
    if path in ('name', 'source'):
      continue
    values = [settings.get(path, ABSENT) for settings in flat]
    pairs = itertools.pairwise(values)
    changed = [False, *(new not in (old, ABSENT) for old, new in pairs)]
    group = same if len(set(values)) == 1 else differing
    group.append(Setting(path, values, changed))
  # By path, so that the fields of a section stand together also where an
  # earlier stage lacks some; the mixture is long, and would hide the rest.
  differing.sort(key=lambda s: (s.path.startswith('data.mixture.'), s.path))
  return differing, same


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """Fields of nested sections by dotted path, each value as text."""
  fields = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      fields |= flatten(value, f'{prefix}{key}.')
    else:
      fields[f'{prefix}{key}'] = _setting_text(value)
  return fields


def _setting_text(value):
  if isinstance(value, str):
    return value or "''"
  if isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
    value = int(value)
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, tuple) and value:
    return ', '.join(map(str, value))
  return repr(value)
