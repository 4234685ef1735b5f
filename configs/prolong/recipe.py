"""ProLong, both long stages and SFT (arXiv:2410.02660).

`:tiny` asks the paper's question of a 0.85M-parameter model on two CPU cores:
do long documents and a higher RoPE base carry a skill learned on short texts to
long ones? There is no Llama-3 of that size, so its recipe begins with a stage
more, which learns in 128 tokens what the paper's model knows of 8K.

    longctx recipe --config=configs/prolong/recipe.py:tiny \
        --workdir=runs/prolong_tiny
    longctx recipe --config=configs/prolong/recipe.py:topology=v5p-64 \
        $CORPUS --config.corpus.prepared=runs/corpus --workdir=runs/prolong

What CORPUS holds is told in `stage_64k`. Cost: 14.4K H100-hours for the two
long stages, as the paper says. Not run at scale.
"""

from ml_collections import ConfigDict

from configs import common
from configs.prolong import sft, stage_64k, stage_512k


def get_config(arg: str = '') -> ConfigDict:
  """All stages; shared sections once."""
  options = common.parse_arg(arg, tiny=False, topology='')
  start = {'start': tiny_start()} if options.tiny else {}
  return common.recipe_from_stages(
    {
      **start,
      'stage_64k': stage_64k.get_config(arg),
      'stage_512k': stage_512k.get_config(arg),
      'sft': sft.get_config(arg),
    }
  )


def tiny_start() -> ConfigDict:
  """What stands for Llama-3-8B-Instruct: text and instructions, short rows.

  Everything here is ours: the instruction data that `configs.longskywork.sft`
  teaches to look things up with, beside plain text.
  """
  c = stage_64k.get_config('tiny')
  c.name = 'start'
  c.data.seq_len, c.data.batch_size = 128, 16
  c.data.mixture = ConfigDict(
    {
      'text': stage_64k.short_documents(0.1),
      **{
        kind: {'kind': 'conversations', 'weight': w, 'conversations': (kind,)}
        for kind, w in (
          ('needle', 0.2),
          ('extract', 0.05),
          ('write_function', 0.05),
          ('define', 0.05),
        )
      },
      'lists': common.lookup_lists(
        0.55, min_len=32, max_len=128, question_frac=1.0
      ),
    }
  )
  c.rope.base = 1000.0
  c.optimizer.update(
    {
      'schedule': 'linear',
      'peak_lr': 5e-3,
      'adam_peak_lr': 1e-2,
      'warmup_steps': 20,
    }
  )
  c.train.steps = 1600
  c.train.carry_over = 'none'
  c.checkpoint.every_steps = 200
  return c
