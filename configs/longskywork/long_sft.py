"""LongSkywork stage 4: long SFT on synthetic tables (arXiv:2406.00605).

20% of the short SFT data and 80% SynL, synthetic lengthy tables, for 200
iterations: the stage that the paper calls critical, and that ProLong
(arXiv:2410.02660, Table 8) found harmful in its own setting.

    longctx train --config=configs/longskywork/long_sft.py:tiny \
        --config.train.init_from=runs/sft/stages/1_sft/checkpoints \
        --workdir=runs/long_sft
"""

from ml_collections import ConfigDict

from configs import common
from configs.longskywork import sft


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes."""
  c = sft.get_config(arg)
  arg = common.parse_arg(arg, tiny=False)
  c.name = 'long_sft'
  c.data.seq_len = 204_800  # the paper's 200K, in whole blocks of 2,048
  c.data.batch_size = 20  # ours: 4M tokens
  c.data.mixture = ConfigDict(
    {
      'conversations': {'kind': 'conversations', 'weight': 0.2},  # paper
      'tables': {
        'kind': 'tables',
        'weight': 0.8,  # paper
        # ours: the paper names retrieval, reasoning and sorting, no shares.
        'tasks': {
          'retrieve': 3.0,
          'retrieve_row': 1.0,
          'filter': 1.0,
          'count': 1.0,
          'sum': 1.0,
          'join': 1.0,
          'sort': 2.0,
          'position': 1.0,
          'absent': 1.0,
        },
        'layouts': {'markdown': 1.0, 'csv': 1.0, 'json': 1.0},
        'num_columns': 6,
        'min_len': 4096,
        'max_len': 204_800,
        'question_frac': 0.02,
        'max_questions': 100,
      },
    }
  )
  c.mesh.context = 8
  c.train.steps = 200  # "a mere 200 iterations" (abstract)
  if arg.tiny:
    c.data.seq_len, c.data.batch_size = 1024, 8
    c.data.mixture.tables = common.lookup_lists(
      0.8, min_len=96, max_len=1024, question_frac=0.3
    )
    # Raised again with the length, as ProLong does (arXiv:2410.02660, Table 9).
    c.rope.base = 100_000.0
    c.mesh.context = 1
    c.optimizer.schedule = 'linear'
    c.optimizer.adam_peak_lr = 5e-3
    c.train.steps = 350
    c.checkpoint.every_steps = 50
  return c
