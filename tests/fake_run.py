"""The directory of a run that never ran: plausible results, for the report."""

import json
import math

import numpy as np

from tests import small

LENGTHS = (128, 256, 384, 512, 768, 1024)
DEPTHS = ('0', '0.25', '0.5', '0.75', '1')
TASKS = ('absent', 'retrieve', 'sort')
TEXT = {
  'kind': 'documents',
  'weight': 1.0,
  'domains': (),
  'planner': 'concat',
}
CHATS = {'kind': 'conversations', 'weight': 1.0}
TABLES = {
  'kind': 'tables',
  'weight': 0.8,
  'tasks': dict.fromkeys(TASKS, 0.5),
  'layouts': {'plain': 8.0, 'markdown': 1.0},
  'num_columns': 3,
  'min_len': 64,
  'max_len': 512,
  'question_frac': 1.0,
  'max_questions': 100,
}


def make_stage(
  name,
  seq_len=128,
  *,
  mixture=None,
  conversations=None,
  steps=300,
  peak_lr=5e-3,
  rope_base=1e5,
  carry_over='weights',
):
  """A stage of 2048 tokens a step, evaluated at LENGTHS."""
  kinds = {'extract': 3000, 'needle': 12_000}
  return small.stage_config(
    name=name,
    source='LongSkywork, arXiv:2406.00605, laptop size',
    corpus={'conversations': kinds if conversations is None else conversations},
    data={
      'seq_len': seq_len,
      'batch_size': 2048 // seq_len,
      'document_mask': False,
      'restart_positions': False,
      'mixture': mixture or {'text': TEXT},
    },
    rope={'base': rope_base},
    optimizer={'peak_lr': peak_lr, 'schedule': 'linear'},
    train={'steps': steps, 'carry_over': carry_over},
    evals={
      'needle': {
        'lengths': LENGTHS,
        'num_depths': len(DEPTHS),
        'samples': 8,
        'num_needles': 4,
      },
      'table_lengths': (128, 512),
      'batch_tokens': 16_384,
    },
  )


def make_stages():
  """Four stages, alternately short and long, as LongSkywork has them."""
  interleaved = {
    **TEXT,
    'planner': 'interleave',
    'docs_per_row': 4,
    'num_chunks': 2,
    'split': 'random',
  }
  return (
    make_stage('pretrain', carry_over='none', rope_base=1e4),
    make_stage(
      'cip', 512, mixture={'cip': interleaved}, steps=100, peak_lr=2e-3
    ),
    make_stage('sft', mixture={'conversations': CHATS}, steps=600),
    make_stage(
      'long_sft',
      512,
      mixture={'conversations': {**CHATS, 'weight': 0.2}, 'tables': TABLES},
      steps=200,
    ),
  )


def make_results(i, stage, rng):
  """Plausible results: each stage answers longer texts than the one before."""

  def grid(reach):
    means = {n: 1 / (1 + math.exp((n - reach) / 120)) for n in LENGTHS}
    return {
      str(n): {
        depth: float(rng.binomial(8, mean) / 8 if i > 1 else 0.0)
        for depth in DEPTHS
      }
      for n, mean in means.items()
    }

  names = [f'{x} {y}' for x in ('markdown', 'plain') for y in TASKS]
  by_position = {
    bucket: 5.2 - 0.35 * k - 0.2 * i * (k > 1) + (i < 1) * max(0, k - 1) * 0.6
    for k, bucket in enumerate(
      ('0-64', '64-128', '128-256', '256-512', '512-1024')
    )
  }
  return {
    'name': stage.name,
    'steps': stage.train.steps,
    'tokens': stage.train.steps * 2048,
    'train_wall_s': 0.41 * stage.train.steps,
    'goodput': {'goodput': 0.9 - 0.1 * i, 'lost_restart_s': 61.0 * i},
    'needle_untrained': None,
    'evals': {
      'needle': {'single': grid(300 * i - 350), 'multi': grid(220 * i - 330)},
      'tables': {
        str(n): {name: float(rng.beta(1 + 3 * i, 8 - 2 * i)) for name in names}
        for n in (128, 512)
      },
      'val_loss': 4.4 - 0.1 * i,
      'val_loss_by_position': by_position,
      'wall_s': 21.5,
    },
  }


def make_workdir(workdir, stages):
  rng = np.random.default_rng(0)
  total = 0.0
  for i, stage in enumerate(stages):
    directory = workdir / 'stages' / f'{i + 1}_{stage.name}'
    directory.mkdir(parents=True)
    results = make_results(i, stage, rng)
    total += results['train_wall_s'] + results['evals']['wall_s']
    (directory / 'results.json').write_text(json.dumps(results))
    steps, peak = stage.train.steps, stage.optimizer.peak_lr
    lines = [
      {
        'step': k,
        'loss': (7.6, 4.9, 3.1, 1.9)[i] * (0.6 + 0.4 * math.exp(-k / 60))
        + rng.normal(0, 0.06),
        'grad_norm': 0.5,
        'lr': peak * min(k / 20, 1 - 0.9 * k / steps),
        'target_weight': 2048.0,
        'elapsed_s': 0.41 * k,
      }
      for k in range(0, steps, 10)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (directory / 'metrics.jsonl').write_text(text)
  summary = {'stages': [], 'total_wall_s': total, 'config_hash': '0123456789ab'}
  (workdir / 'summary.json').write_text(json.dumps(summary))
