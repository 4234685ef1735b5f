"""ProLong stage 3: SFT on short conversations (arXiv:2410.02660, Table 9).

UltraChat alone, in rows of 64K tokens, at the RoPE base of stage 2, whose
weights carry over: the paper found that synthetic long data makes it worse
(Table 8), and LongSkywork (arXiv:2406.00605) that they are what it takes.

    longctx train --config=configs/prolong/sft.py:topology=v5p-64 \
        --config.train.init_from=runs/512k/stages/1_stage_512k/checkpoints \
        $CORPUS --config.corpus.prepared=runs/corpus --workdir=runs/sft
    longctx train --config=configs/prolong/sft.py:tiny \
        --config.train.init_from=runs/512k/stages/1_stage_512k/checkpoints \
        --workdir=runs/sft

UltraChat is given as JSON when the corpus is made, by
`--config.corpus.conversation_files.ultrachat.path`. The paper doesn't tell the
cost. Not run at scale.
"""

from ml_collections import ConfigDict

from configs import common
from configs.prolong import stage_512k

# Rows are of 64K; those of 512K that are evaluated take stage 2's context.
TOPOLOGIES = stage_512k.TOPOLOGIES


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes."""
  arg = common.parse_arg(arg, tiny=False, topology='')
  c = stage_512k.get_config(common.arg_of(tiny=arg.tiny))
  c.name = 'sft'
  c.data.seq_len = 65_536  # Table 9
  c.data.batch_size = 64  # Table 9: 4M tokens
  c.data.mixture = ConfigDict(
    {
      'ultrachat': {
        'kind': 'conversations',
        'weight': 1.0,
        'conversations': ('ultrachat',),
        # The last one is cut at the end of a row, and its rest dropped (A.2).
        'planner': 'concat_drop',
      }
    }
  )
  c.optimizer.peak_lr = 2e-5  # Table 9
  c.optimizer.warmup_steps = 13  # Table 9: 5%, rounded up as transformers does
  c.train.steps = 250  # train_sft.sh: 1B tokens
  c.train.carry_over = 'weights'
  c.checkpoint.every_steps = 50  # ours: five in all
  if arg.tiny:
    c.data.seq_len, c.data.batch_size = 512, 8
    # No lists to look up, and no conversation beyond 128 tokens: what reaches
    # further was learned from long documents.
    c.data.mixture = ConfigDict(
      {
        kind: {
          'kind': 'conversations',
          'weight': weight,
          'conversations': (kind,),
          'planner': 'concat_drop',
        }
        for kind, weight in (
          ('needle', 0.7),
          ('extract', 0.1),
          ('write_function', 0.1),
          ('define', 0.1),
        )
      }
    )
    c.optimizer.peak_lr = 2e-3  # twice that of the long stages, as Table 9
    c.optimizer.adam_peak_lr = 4e-3
    c.optimizer.warmup_steps = 10
    c.train.steps = 200
    c.checkpoint.every_steps = 50
  common.choose_topology(c, arg, TOPOLOGIES)
  return c
