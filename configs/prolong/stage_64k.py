"""ProLong stage 1: 8K to 64K tokens (arXiv:2410.02660, Table 9).

Llama-3-8B-Instruct goes on training on 20B tokens: 63% long documents (code
repositories, books, textbooks), 37% ShortMix; each document sees only itself.
The model first, from Hugging Face's folder of it, then one corpus for all
stages; CORPUS gives a path to every domain and to the last stage's chats:

    CORPUS="--config.corpus.sources.code.path=DIR
            --config.corpus.sources.books.path=DIR ...
            --config.corpus.conversation_files.ultrachat.path=DIR"
    longctx convert --from=Meta-Llama-3-8B-Instruct \
        --out=models/llama-3-8b-instruct
    longctx prepare --config=configs/prolong/stage_64k.py $CORPUS \
        --out=runs/corpus --runner=DirectRunner
    longctx train --config=configs/prolong/stage_64k.py:topology=v5p-64 \
        $CORPUS --config.corpus.prepared=runs/corpus --workdir=runs/64k

`:tiny` goes on from what the recipe begins with at laptop size:

    longctx train --config=configs/prolong/stage_64k.py:tiny \
        --config.train.init_from=runs/prolong_tiny/stages/1_start/checkpoints \
        --workdir=runs/64k

`:text_only` leaves the chats out of the corpus, for the two long stages without
the last: give it, or `:text_only,topology=...`, to `prepare` and both of them.

Cost: 2.2K H100-hours, as the paper says. Not run at scale.
"""

from ml_collections import ConfigDict

from configs import common

# Of a domain, in characters.
ALL_OF_IT = 10**12  # ours: more than any of them has

# On v5p a row lies on one chip: nothing then waits for a ring. What each takes
# and how long it is, benchmarks/plan_stages.py prints.
TOPOLOGIES = {
  # ours: 4 chips, the fewest of a v5p
  'v5p-8': common.layout(fsdp=4, context=1, micro_batches=16),
  # ours: 8 chips, a row on each
  'v5p-16': common.layout(fsdp=8, context=1, micro_batches=8),
  # ours: 32 chips, a row on each
  'v5p-64': common.layout(fsdp=32, context=1, micro_batches=2),
  # ours: 8 chips, 8192 tokens on each
  'v6e-8': common.layout(fsdp=1, context=8, micro_batches=64, remat='offload'),
  # ours: 32 chips, 8192 tokens on each
  'v6e-32': common.layout(fsdp=4, context=8, micro_batches=16),
}


def get_config(arg: str = '') -> ConfigDict:
  """The stage; `:tiny` runs on a laptop in minutes."""
  arg = common.parse_arg(arg, tiny=False, text_only=False, topology='')
  c = ConfigDict()
  c.name = 'stage_64k'
  c.source = 'ProLong, arXiv:2410.02660'
  c.seed = 0
  c.corpus = ConfigDict(
    {
      # Give each its own: --config.corpus.sources.books.path=DIR, and .kind
      # for what is not JSON lines with the field `text`.
      'sources': {
        # All files of a repository are one document, in the order of their
        # names and not of their imports (sec. 3.1).
        'code': common.text_source('repositories', ALL_OF_IT),
        'books': common.text_source('jsonl', ALL_OF_IT),
        # LibreTexts, one document a subject: chapters make books, and books of
        # one subject a document.
        'textbooks': common.text_source('jsonl', ALL_OF_IT),
        # ShortMix.
        'fineweb_edu': common.text_source('jsonl', ALL_OF_IT),
        'fineweb': common.text_source('jsonl', ALL_OF_IT),
        'stackexchange': common.text_source('jsonl', ALL_OF_IT),
        'wikipedia': common.text_source('jsonl', ALL_OF_IT),
        'tulu': common.text_source('jsonl', ALL_OF_IT),
        'arxiv': common.text_source('jsonl', ALL_OF_IT),
        'openwebmath': common.text_source('jsonl', ALL_OF_IT),
      },
      'filters': common.all_documents(),
      'prepared': '',
      'vocab_size': 128_256,  # Llama-3's tokenizer
      'heldout_frac': 0.001,  # ours: 20M tokens to evaluate on
      # None are made: the last stage trains on UltraChat, given by its path.
      'conversations': {},
      'max_conversation_len': 8192,  # ours: UltraChat's longest has 4.1K
      'tokenizer_path': 'models/llama-3-8b-instruct',
      'added_tokens': (),
      # What ProLong's packing puts around documents (128000 and 128001).
      'bos_token': '<|begin_of_text|>',
      'eos_token': '<|end_of_text|>',
      'bos': 'document',
      'eos': 'document',
      'chat_template': 'llama3',
      'conversation_files': {
        'ultrachat': {
          'path': '',
          'shape': 'auto',
          'on_problem': 'skip',
          'on_long': 'drop',
        }
      },
    }
  )
  c.data = ConfigDict(
    {
      'seq_len': 65_536,  # Table 9
      'batch_size': 64,  # Table 9: 4M tokens
      'document_mask': True,  # sec. 4.2, Table 20
      # Its code goes on counting (training/modeling_flash_llama.py).
      'restart_positions': False,
      'loss_normalizer': 'token',  # sec. 5.3
      'label_first_token': False,  # -100 in its training/dataset.py
      'on_repeat': 'warn',
      'weight_schedule': (),
      'window_schedule': (),
      'window_multiple': 1,
      'position_jumps': {'kind': 'none', 'target_len': 0, 'num_chunks': 0},
      'num_workers': 0,
      'mixture': {
        # Table 9, as all weights: 63% long documents.
        'code_64k': long_documents(0.30, 'code', 65_536),  # Table 9
        'books_64k': long_documents(0.30, 'books', 65_536),  # Table 9
        'textbooks_64k': long_documents(0.03, 'textbooks', 65_536),  # Table 9
        **short_mix(),
      },
    }
  )
  c.model = ConfigDict(
    {
      'vocab_size': 128_256,  # Llama-3-8B's config.json
      'embed_dim': 4096,  # Llama-3-8B's config.json
      'num_layers': 32,  # Llama-3-8B's config.json
      'num_heads': 32,  # Llama-3-8B's config.json
      'num_kv_heads': 8,  # Llama-3-8B's config.json
      'head_dim': 128,  # Llama-3-8B's config.json
      'hidden_dim': 14_336,  # Llama-3-8B's config.json
      'tie_embeddings': False,
      'norm_eps': 1e-5,  # Llama-3-8B's config.json
      'qkv_bias': False,
      'param_dtype': 'float32',
      'compute_dtype': 'bfloat16',  # train_64K.sh, as float32 parameters
      'block_init_scale': 1.0,
      'remat': 'full',  # train_64K.sh: gradient checkpointing
      # Gathered kernels of the feed-forward and its hidden take gigabytes.
      'mlp_chunk_len': 8192,  # ours: 59 MB of hidden in bfloat16, with the next
      'mlp_chunk_width': 3584,  # ours: a quarter of it
      'attention_kernel': 'auto',
      'attention_block_len': 512,  # ours: the fastest of XLA's loops at T=4096
      'loss_chunk_len': 2048,  # LOGIT_BLOCK_SIZE of train_64K.sh
      'scan_unroll': 1,
    }
  )
  c.rope = ConfigDict({'base': 8e6})  # Table 9; Llama-3's is 5e5
  # For devices that no topology below names: a row lies on one.
  c.mesh = ConfigDict(
    {
      'data': 1,
      'fsdp': -1,
      'context': 1,
      'tensor': 1,
      'context_kind': 'ring',
      'context_layout': 'zigzag',
    }
  )
  c.optimizer = ConfigDict(
    {
      'name': 'adamw',
      'peak_lr': 1e-5,  # Table 9
      'adam_peak_lr': 0.0,
      'schedule': 'cosine',  # Table 9
      'warmup_steps': 500,  # Table 9: 10%
      'min_lr_ratio': 0.1,  # Table 9: to 10% of the peak
      'weight_decay': 0.1,  # Table 9
      'b1': 0.9,  # Table 9
      'b2': 0.95,  # Table 9
      'clip_norm': 1.0,  # train_64K.sh
    }
  )
  c.train = ConfigDict(
    {
      'steps': 5000,  # Table 9: 20B tokens, with B = 2^30
      'micro_batches': 1,
      'carry_over': 'weights',
      'init_from': 'models/llama-3-8b-instruct',
      'log_every': 10,  # ours
    }
  )
  # ours: 2B tokens, so that a kill costs no more.
  c.checkpoint = ConfigDict({'every_steps': 500, 'keep': 2})
  c.evals = ConfigDict(
    {
      'needle': {
        # ours: the paper's own suite is HELMET; these are its lengths.
        'lengths': (8192, 32_768, 65_536, 131_072, 262_144, 524_288),
        'num_depths': 5,  # ours: half an hour's worth of prompts
        'samples': 4,  # ours: as above
        'num_needles': 4,  # ours: as RULER's multi-key task
      },
      'table_lengths': (8192, 65_536),  # ours: short, and stage 1's
      'table_samples': 20,  # ours: as above
      'validation_len': 524_288,  # ours: stage 2's
      'validation_rows': 16,  # ours: one batch of stage 2
      'batch_tokens': 2_097_152,  # ours: four rows of stage 2
    }
  )
  if arg.tiny:
    common.shrink_to_laptop(c)
    c.corpus.conversation_files = ConfigDict()
    c.data.seq_len, c.data.batch_size = 512, 8
    c.data.mixture = ConfigDict(
      {
        'code_long': long_documents(0.3, 'code', 512),
        'books_long': long_documents(0.3, 'books', 512),
        'docs': short_documents(0.2, 'docs'),
        'stdlib': short_documents(0.2, 'stdlib'),
      }
    )
    # Sixteen times what the start has, as 8e6 is of Llama-3's 5e5.
    c.rope.base = 16_000.0
    c.optimizer.update(
      {
        'name': 'muon',
        'peak_lr': 1e-3,
        'adam_peak_lr': 2e-3,
        'warmup_steps': 6,
        'weight_decay': 0.0,
      }
    )
    c.train.steps = 60
    c.train.init_from = ''
    c.checkpoint.every_steps = 30
  if arg.text_only:
    c.corpus.conversations = ConfigDict()
    c.corpus.conversation_files = ConfigDict()
  common.choose_topology(c, arg, TOPOLOGIES)
  return c


def long_documents(
  weight: float, domain: str, bucket_len: int, max_len: int = 0
) -> ConfigDict:
  """Rows of pieces of `bucket_len` tokens, of documents as long or longer.

  ProLong drops shorter ones (A.2).
  """
  return ConfigDict(
    {
      'kind': 'documents',
      'weight': weight,
      'domains': (domain,),
      'planner': 'buckets',
      'bucket_len': bucket_len,
      'min_len': bucket_len,
      'max_len': max_len,
    }
  )


def short_documents(weight: float, *domains: str) -> ConfigDict:
  """Rows of documents end to end; what a row cuts off starts the next (A.2)."""
  return ConfigDict(
    {
      'kind': 'documents',
      'weight': weight,
      'domains': domains,
      'planner': 'concat',
    }
  )


def short_mix() -> dict[str, ConfigDict]:
  """ShortMix, 37% of both stages (Tables 5 and 9)."""
  return {
    'fineweb_edu': short_documents(0.10, 'fineweb_edu'),  # Table 9
    'fineweb': short_documents(0.10, 'fineweb'),  # Table 9
    'stackexchange': short_documents(0.04, 'stackexchange'),  # Table 9
    'wikipedia': short_documents(0.04, 'wikipedia'),  # Table 9
    'tulu': short_documents(0.03, 'tulu'),  # Table 9: Tulu-v2
    'arxiv': short_documents(0.03, 'arxiv'),  # Table 9
    'openwebmath': short_documents(0.03, 'openwebmath'),  # Table 9
  }
