"""LongSkywork stage 1: standard pretraining (arXiv:2406.00605).

Plain next-token prediction on documents laid end to end, at the short length.
The paper starts from a model pretrained this way; its model, as far as it is
known, is Skywork-13B (arXiv:2310.19341), whose sizes are used here. Stage
hyper-parameters are not public: what has no source is ours. Not run at scale.

    longctx train --config=configs/longskywork/pretrain.py:tiny \
        --workdir=runs/pretrain
"""

from ml_collections import ConfigDict

from configs import common

# A row lies on one chip: nothing waits for a ring.
TOPOLOGIES = {
  # ours: 4 chips, 4 rows on each
  'v5p-8': common.layout(fsdp=4, context=1, micro_batches=64, remat='offload'),
  # ours: 8 chips, 4 rows on each
  'v5p-16': common.layout(fsdp=8, context=1, micro_batches=32),
  # ours: 32 chips, 8 rows on each
  'v5p-64': common.layout(fsdp=32, context=1, micro_batches=4),
  # ours: 16 chips, 8 rows on each
  'v6e-16': common.layout(fsdp=16, context=1, micro_batches=8, remat='offload'),
}


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes.

  `:true_long` adds your long conversations to the corpus, for stage 4.
  """
  arg = common.parse_arg(arg, tiny=False, true_long=False, topology='')
  c = ConfigDict()
  c.name = 'pretrain'
  c.source = 'LongSkywork, arXiv:2406.00605'
  c.seed = 0
  c.corpus = ConfigDict(
    {
      # Give your own directory: --config.corpus.sources.text.path=DIR
      'sources': {
        'text': common.text_source('text_files', 10**12),  # ours: all
        # What the instruction data of stage 3 is made from, beside the text.
        'code': {'kind': 'packages', 'max_chars': 10**9},  # ours: all
      },
      'filters': common.all_documents(),
      'prepared': '',
      'vocab_size': 65_536,  # Skywork-13B
      'heldout_frac': 0.001,  # ours: enough to evaluate on
      # No needles: the evaluation's wording stays out of training.
      'conversations': {
        'write_function': 100_000,  # ours: the paper's data is not public
        'define': 100_000,  # ours: as above
        'extract': 100_000,  # ours: as above
      },
      'max_conversation_len': 4096,  # stage 3 is 4K long (paper)
      # '' trains a tokenizer on the text. Of your own: a tokenizer.json, a
      # SentencePiece model, or a folder that holds either.
      'tokenizer_path': '',
      'added_tokens': (),
      'bos_token': '',
      'eos_token': '',
      'bos': 'document',
      'eos': 'document',
      'chat_template': 'plain',
      # Such as {'mine': {'path': 'chats.jsonl', 'on_long': 'truncate'}}.
      'conversation_files': {},
    }
  )
  c.data = ConfigDict(
    {
      'seq_len': 4096,  # Skywork-13B, and the paper's short length
      'batch_size': 1024,  # ours: 4M tokens
      'document_mask': False,  # Skywork-13B packs without one
      'restart_positions': False,
      'loss_normalizer': 'token',
      'label_first_token': True,  # of a document, by the one before it
      'on_repeat': 'warn',  # or refuse to read a source twice
      # Such as ({'step': 500, 'weights': {'text': 0.7, 'code': 0.3}},).
      'weight_schedule': (),
      # SkyLadder's, such as ({'step': 0, 'window': 32}, ...).
      'window_schedule': (),
      'window_multiple': 1,
      # pose or longrecipe: positions that skip ahead.
      'position_jumps': {'kind': 'none', 'target_len': 0, 'num_chunks': 0},
      'num_workers': 0,  # processes that read; 0: threads
      'mixture': {
        'text': {
          'kind': 'documents',
          'weight': 1.0,
          'domains': (),
          'planner': 'concat',
        }
      },
    }
  )
  c.model = ConfigDict(
    {
      'vocab_size': 65_536,  # Skywork-13B
      'embed_dim': 4608,  # Skywork-13B
      'num_layers': 52,  # Skywork-13B
      'num_heads': 36,  # Skywork-13B
      'num_kv_heads': 36,  # Skywork-13B
      'head_dim': 128,  # Skywork-13B
      'hidden_dim': 12_288,  # Skywork-13B
      'tie_embeddings': False,
      'norm_eps': 1e-6,  # Skywork-13B
      'param_dtype': 'float32',  # ours
      'compute_dtype': 'bfloat16',
      'block_init_scale': 1.0,  # ours
      'remat': 'full',  # ours: 200K tokens leave room for nothing else
      # Gathered kernels of the feed-forward and its hidden take gigabytes.
      'mlp_chunk_len': 8192,  # ours: 50 MB of hidden in bfloat16, with the next
      'mlp_chunk_width': 3072,  # ours: a quarter of it
      'attention_kernel': 'auto',
      'attention_block_len': 512,  # ours: the fastest of XLA's loops at T=4096
      'scan_unroll': 1,
    }
  )
  c.rope = ConfigDict({'base': 10_000.0})  # Skywork-13B
  # ours: parameters over all devices; see sharding.py for the axes.
  c.mesh = ConfigDict(
    {
      'data': 1,
      'fsdp': -1,
      'context': 1,
      'tensor': 1,
      'context_kind': 'ring',  # or allgather, ulysses
      'context_layout': 'zigzag',  # or contiguous
    }
  )
  c.optimizer = ConfigDict(
    {
      'name': 'adamw',
      'peak_lr': 6e-4,  # ours: the paper's is not public
      'adam_peak_lr': 0.0,
      'schedule': 'cosine',  # ours: the paper's is not public
      'warmup_steps': 2000,  # ours: 2% of the steps
      'min_lr_ratio': 0.1,  # ours: as ProLong, arXiv:2410.02660, Table 9
      'weight_decay': 0.1,  # Skywork-13B's SFT script
      'b1': 0.9,  # Skywork-13B's SFT script
      'b2': 0.95,  # Skywork-13B's SFT script
      'clip_norm': 1.0,  # ours: as ProLong
    }
  )
  c.train = ConfigDict(
    {
      'steps': 100_000,  # ours: 420B tokens; the paper's is not public
      'micro_batches': 1,
      'carry_over': 'none',
      'init_from': '',
      'log_every': 10,  # ours
    }
  )
  # ours: a kill costs no more than 1% of the stage
  c.checkpoint = ConfigDict({'every_steps': 1000, 'keep': 2})
  c.evals = ConfigDict(
    {
      'needle': {
        # ours: the paper's grid is not public, its claim reaches 200K.
        'lengths': (4096, 16_384, 65_536, 131_072, 204_800),
        'num_depths': 11,  # ours: every 10%
        'samples': 10,  # ours
        'num_needles': 4,  # ours
      },
      'table_lengths': (4096, 65_536),  # ours: short, and long
      'table_samples': 50,  # ours
      'validation_len': 204_800,  # the paper's 200K
      'validation_rows': 64,  # ours
      'batch_tokens': 1_638_400,  # ours: eight rows of 200K
    }
  )
  if arg.true_long:
    # Your own, for stage 4:
    # --config.corpus.conversation_files.true_long.path=FILE.jsonl
    c.corpus.conversation_files.true_long = ConfigDict(
      {
        'path': '',
        'shape': 'auto',
        'on_problem': 'skip',
        'on_long': 'drop',
        'max_len': 204_800,  # ours: as long as stage 4's rows
      }
    )
  if arg.tiny:
    common.shrink_to_laptop(c)
    if arg.true_long:
      c.corpus.conversation_files.true_long.max_len = 1024
    c.data.seq_len, c.data.batch_size = 128, 16
    c.optimizer.update(
      {
        'name': 'muon',
        'peak_lr': 5e-3,
        'adam_peak_lr': 1e-2,
        'schedule': 'linear',
        'warmup_steps': 20,
        'weight_decay': 0.0,
      }
    )
    c.rope.base = 1000.0
    c.train.steps = 200
    c.checkpoint.every_steps = 100
  common.choose_topology(c, arg, TOPOLOGIES)
  return c
