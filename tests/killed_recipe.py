"""Config of the recipe that `recipe_test.py` kills: two stages of 40 steps."""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from tests.recipe_test import two_stages


def get_config(arg: str = '') -> ConfigDict:
  """Both stages on however many devices there are."""
  del arg
  stages = {}
  for stage in two_stages():
    config = ConfigDict(dataclasses.asdict(stage))
    config.mesh.fsdp = -1
    config.train.steps = 40
    config.checkpoint.every_steps = 5
    stages[stage.name] = config
  return common.recipe_from_stages(stages)
