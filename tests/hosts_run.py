"""Config of the runs of `hosts_test.py`: six steps on four devices."""

import dataclasses

from ml_collections import ConfigDict

from longctx_jax.config import StageConfig
from tests import small


def stage() -> StageConfig:
  """Of what takes long to compile there is little: it is about processes."""
  return small.stage_config(
    model={'num_layers': 1, 'attention': 'dense'},
    mesh={'data': 2, 'fsdp': 2},
    train={'steps': 6},
    checkpoint={'every_steps': 2, 'keep': 3},
    evals={
      'needle': {
        'lengths': (64,),
        'num_depths': 1,
        'samples': 2,
        'num_needles': 1,
      }
    },
  )


def get_config(arg: str = '') -> ConfigDict:
  """The stage, with fields that flags can set."""
  del arg
  return ConfigDict(dataclasses.asdict(stage()))
