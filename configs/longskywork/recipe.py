"""LongSkywork, all four stages (arXiv:2406.00605).

`:tiny` trains a 0.85M-parameter model from scratch on real text, on two CPU
cores: the laptop version of the paper's question, whether long SFT on synthetic
tables carries a skill learned on short texts to long ones.

    longctx recipe --config=configs/longskywork/recipe.py:tiny \
        --workdir=runs/longskywork_tiny

`:topology=v5p-64` is the paper's size on 32 chips, and `:true_long` its other
mix in stage 4; options are joined by commas. Not run at scale.
"""

from ml_collections import ConfigDict

from configs import common
from configs.longskywork import cip, long_sft, pretrain, sft


def get_config(arg: str = '') -> ConfigDict:
  """All stages; shared sections once."""
  return common.recipe_from_stages(
    {
      'pretrain': pretrain.get_config(arg),
      'cip': cip.get_config(arg),
      'sft': sft.get_config(arg),
      'long_sft': long_sft.get_config(arg),
    }
  )
