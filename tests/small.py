"""Small configs that tests share; every size is a few tokens."""

from typing import Any

from longctx_jax.config import StageConfig, from_config_dict
from longctx_jax.corpus_config import CorpusConfig

CORPUS = {
  'sources': {
    'code': {'kind': 'stdlib', 'max_chars': 60_000},
    'docs': {'kind': 'docs', 'max_chars': 60_000},
  },
  'vocab_size': 768,
  'heldout_frac': 0.2,
  'conversations': {'extract': 20, 'needle': 40},
  'max_conversation_len': 128,
}


def corpus_config(**changes: Any) -> CorpusConfig:
  """A corpus of 120,000 characters of the standard library."""
  return from_config_dict(CorpusConfig, {**CORPUS, **changes})


def stage_config(**changes: dict[str, Any]) -> StageConfig:
  """A stage of 4 steps; `changes` maps a section to the fields to replace."""
  fields = {
    'name': 'small',
    'source': 'tests',
    'seed': 0,
    'corpus': CORPUS,
    'data': {
      'seq_len': 128,
      'batch_size': 8,
      'document_mask': True,
      'restart_positions': True,
      'loss_normalizer': 'token',
      'mixture': {
        'text': {
          'kind': 'documents',
          'weight': 0.5,
          'domains': (),
          'planner': 'concat',
        },
        'chat': {'kind': 'conversations', 'weight': 0.25},
        'tables': {
          'kind': 'tables',
          'weight': 0.25,
          'tasks': {'retrieve': 1.0},
          'layouts': {'plain': 1.0},
          'num_columns': 2,
          'min_len': 48,
          'max_len': 128,
          'question_frac': 0.5,
          'max_questions': 8,
        },
      },
    },
    'model': {
      'vocab_size': CORPUS['vocab_size'],
      'embed_dim': 32,
      'num_layers': 2,
      'num_heads': 4,
      'num_kv_heads': 2,
      'head_dim': 8,
      'hidden_dim': 64,
      'tie_embeddings': False,
      'norm_eps': 1e-6,
      'param_dtype': 'float32',
      'compute_dtype': 'float32',
      'block_init_scale': 1.0,
      'remat': 'none',
      'attention_block_len': 32,
      'loss_chunk_len': 256,
    },
    'rope': {'base': 10_000.0},
    'mesh': {'data': 1, 'fsdp': -1, 'context': 1, 'tensor': 1},
    'optimizer': {
      'name': 'adamw',
      'peak_lr': 1e-2,
      'schedule': 'cosine',
      'warmup_steps': 1,
      'min_lr_ratio': 0.1,
      'weight_decay': 0.1,
      'b1': 0.9,
      'b2': 0.95,
      'clip_norm': 1.0,
      'adam_peak_lr': 1e-2,
    },
    'train': {
      'steps': 4,
      'micro_batches': 1,
      'carry_over': 'none',
      'log_every': 1,
    },
    'checkpoint': {'every_steps': 2},
    'evals': {
      'needle': {
        'lengths': (64, 128),
        'num_depths': 2,
        'samples': 2,
        'num_needles': 2,
      },
      'table_lengths': (96,),
      'table_samples': 2,
      'validation_len': 128,
      'validation_rows': 4,
      'batch_tokens': 1024,
    },
  }
  for section, values in changes.items():
    if isinstance(values, dict):
      fields[section] = {**fields[section], **values}
    else:
      fields[section] = values
  return from_config_dict(StageConfig, fields)
