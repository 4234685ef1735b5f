"""LongSkywork stage 3: standard SFT at the short length (arXiv:2406.00605).

Short conversations, loss on the assistant's turns, each seeing only itself.
Weights carry over from stage 2, and so does its RoPE base.

    longctx train --config=configs/longskywork/sft.py:tiny \
        --config.train.init_from=runs/cip/stages/1_cip/checkpoints \
        --workdir=runs/sft
"""

from ml_collections import ConfigDict

from configs import common
from configs.longskywork import cip

# Rows are short; those of 200K that are evaluated take as much context as cip.
TOPOLOGIES = {
  # ours: 4 chips, 16,384 tokens on each
  'v5p-8': common.layout(fsdp=1, context=4, micro_batches=4, remat='offload'),
  # ours: 8 chips, 8192 tokens on each
  'v5p-16': common.layout(fsdp=1, context=8, micro_batches=4),
  # ours: 32 chips, 8192 tokens on each
  'v5p-64': common.layout(fsdp=4, context=8, micro_batches=1),
  # ours: 16 chips, 4096 tokens on each
  'v6e-16': common.layout(fsdp=2, context=8, micro_batches=4, remat='offload'),
}


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes."""
  arg = common.parse_arg(arg, tiny=False, true_long=False, topology='')
  c = cip.get_config(common.arg_of(tiny=arg.tiny, true_long=arg.true_long))
  c.name = 'sft'
  c.data.seq_len = 4096  # paper
  c.data.batch_size = 64  # ours: 262K tokens; the paper's is not public
  c.data.document_mask = True  # ours
  c.data.restart_positions = True  # ours
  c.data.mixture = ConfigDict({'conversations': short_conversations(c, 1.0)})
  c.mesh.context = 1
  c.optimizer.schedule = 'constant'  # Skywork-13B's SFT script
  c.optimizer.warmup_steps = 20  # Skywork-13B's SFT script
  c.train.steps = 1000  # ours: the paper's is not public
  if arg.tiny:
    c.data.seq_len, c.data.batch_size = 128, 16
    c.data.mixture = ConfigDict(
      {
        kind: {'kind': 'conversations', 'weight': w, 'conversations': (kind,)}
        for kind, w in (
          ('needle', 0.25),
          ('extract', 0.05),
          ('write_function', 0.05),
          ('define', 0.05),
        )
      }
    )
    # Short lists, every line asked for: dense enough for so small a model to
    # learn looking up. At half this weight one run in two did not.
    c.data.mixture.lists = common.lookup_lists(
      0.6, min_len=32, max_len=128, question_frac=1.0
    )
    c.optimizer.peak_lr = 5e-3
    c.optimizer.adam_peak_lr = 1e-2
    c.train.steps = 1400
    c.checkpoint.every_steps = 200
  common.choose_topology(c, arg, TOPOLOGIES)
  return c


def short_conversations(config: ConfigDict, weight: float) -> ConfigDict:
  """Rows of all conversations but the true long ones, which stage 4 has."""
  corpus = config.corpus
  kinds = [*corpus.conversations, *corpus.conversation_files]
  kinds = tuple(kind for kind in kinds if kind != 'true_long')
  return ConfigDict(
    {
      'kind': 'conversations',
      'weight': weight,
      # () takes every kind, those that are added by flag too.
      'conversations': kinds
      if 'true_long' in corpus.conversation_files
      else (),
    }
  )
