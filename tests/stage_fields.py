"""A small stage as a dictionary, and what is refused of one."""

import json

import pytest

from longctx_jax.config import (
  ConfigError,
  StageConfig,
  from_config_dict,
  to_json,
)
from tests import small


def fields(**changes):
  """A small stage as a dictionary; `changes` by dotted path, __ for a dot."""
  tree = json.loads(to_json(small.stage_config()))
  for path, value in changes.items():
    *parents, last = path.split('__')
    section = tree
    for name in parents:
      section = section[name]
    if value is DELETED:
      del section[last]
    else:
      section[last] = value
  return tree


DELETED = object()


def assert_refused(says, **changes):
  with pytest.raises(ConfigError) as error:
    from_config_dict(StageConfig, fields(**changes))
  message = str(error.value)
  assert message.startswith(says)
  assert '\n' not in message
  return message
