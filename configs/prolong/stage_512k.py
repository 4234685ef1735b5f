"""ProLong stage 2: 64K to 512K tokens (arXiv:2410.02660, Table 9).

Another 20B tokens: half of the code and a sixth of the books are documents of
512K tokens and more, the others are pieces of 64K laid side by side. Stage 1's
optimizer state goes on, its learning-rate schedule starts again.

    longctx train --config=configs/prolong/stage_512k.py:topology=v5p-64 \
        --config.train.init_from=runs/64k/stages/1_stage_64k/checkpoints \
        $CORPUS --config.corpus.prepared=runs/corpus --workdir=runs/512k
    longctx train --config=configs/prolong/stage_512k.py:tiny \
        --config.train.init_from=runs/64k/stages/1_stage_64k/checkpoints \
        --workdir=runs/512k

Cost: 12.2K H100-hours, as the paper says. Not run at scale.
"""

from ml_collections import ConfigDict

from configs import common
from configs.prolong import stage_64k
from configs.prolong.stage_64k import long_documents, short_mix

# Parameters and optimizer state lie on fsdp x context, rows on fsdp alone. What
# each takes and how long it is, benchmarks/plan_stages.py prints.
TOPOLOGIES = {
  # ours: 4 chips, the fewest of a v5p; 131,072 tokens on each
  'v5p-8': common.layout(fsdp=1, context=4, micro_batches=16),
  # ours: 8 chips, 65,536 tokens on each
  'v5p-16': common.layout(fsdp=1, context=8, micro_batches=16),
  # ours: 32 chips, 65,536 tokens on each
  'v5p-64': common.layout(fsdp=4, context=8, micro_batches=4),
  # ours: 8 chips, the fewest of a v6e, with the host's help
  'v6e-8': common.layout(fsdp=1, context=8, micro_batches=16, remat='offload'),
  # ours: 32 chips, 32,768 tokens on each
  'v6e-32': common.layout(fsdp=2, context=16, micro_batches=8),
}


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes."""
  arg = common.parse_arg(arg, tiny=False, text_only=False, topology='')
  c = stage_64k.get_config(
    common.arg_of(tiny=arg.tiny, text_only=arg.text_only)
  )
  c.name = 'stage_512k'
  c.data.seq_len = 524_288  # Table 9
  c.data.batch_size = 16  # Table 9: 8M tokens
  c.rope.base = 1.28e8  # Table 9
  # Table 9 says 1e-5 for either stage. The published train_512K.sh has 5e-6:
  # --config.optimizer.peak_lr=5e-6 trains as that did.
  c.optimizer.peak_lr = 1e-5
  c.optimizer.warmup_steps = 250  # Table 9: 10%
  c.train.steps = 2500  # Table 9: 20B tokens, with B = 2^30
  c.train.carry_over = 'weights_and_optimizer'  # Table 9
  c.train.init_from = ''
  c.checkpoint.every_steps = 250  # ours: 2B tokens
  c.mesh.context = 8  # train_512K.sh: seq_parallel_size
  if arg.tiny:
    c.data.seq_len, c.data.batch_size = 1024, 8
    # A laptop's code and books are all longer than either length.
    c.data.mixture.code_long.weight = 0.15
    c.data.mixture.books_long.weight = 0.25
    c.data.mixture.update(
      {
        'code_longest': long_documents(0.15, 'code', 1024),
        'books_longest': long_documents(0.05, 'books', 1024),
      }
    )
    c.rope.base = 256_000.0  # sixteen times again
    c.mesh.context = 1
    c.optimizer.peak_lr = 1e-3
    c.optimizer.warmup_steps = 4
    c.train.steps = 40
    c.checkpoint.every_steps = 20
    return c
  # Documents that make pieces of 64K give none of 512K (A.2).
  c.data.mixture = ConfigDict(
    {
      'code_512k': long_documents(0.15, 'code', 524_288),  # Table 9
      'code_64k': long_documents(0.15, 'code', 65_536, 524_288),  # Table 9
      'books_512k': long_documents(0.05, 'books', 524_288),  # Table 9
      'books_64k': long_documents(0.25, 'books', 65_536, 524_288),  # Table 9
      'textbooks_512k': long_documents(0.03, 'textbooks', 524_288),  # Table 9
      **short_mix(),
    }
  )
  common.choose_topology(c, arg, TOPOLOGIES)
  return c
