"""Settings that cannot run together, each refused in one line."""

import dataclasses
import math

import pytest

from longctx_jax.config import (
  ConfigError,
  StageConfig,
  from_config_dict,
)
from longctx_jax.corpus_config import ConversationFiles
from tests import small
from tests.stage_fields import assert_refused, fields

EVEN = {'text': 0.6, 'chat': 0.2, 'tables': 0.2}
TEXT = {'kind': 'documents', 'weight': 0.5, 'domains': ()}
CIP = {**TEXT, 'planner': 'interleave', 'docs_per_row': 2, 'num_chunks': 2}
INTERLEAVED = {
  'data__mixture__text': CIP,
  'data__document_mask': False,
  'data__restart_positions': False,
}
UTK = {**TEXT, 'planner': 'untie', 'chunk_probs': (1.0,), 'min_chunk_len': 1}
BUCKETS = {**TEXT, 'planner': 'buckets', 'bucket_len': 64}


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (
      {'data__mixture__text__weight': 0.6},
      'data.mixture: the weights must sum to 1, got 1.1 (text=0.6, chat=0.25,',
    ),
    (
      {'data__mixture__text__weight': float('nan')},
      'data.mixture: the weights must sum to 1, got nan',
    ),
    (
      {
        'data__mixture__text__weight': -0.5,
        'data__mixture__chat__weight': 1.25,
      },
      'data.mixture.text.weight must not be negative, got -0.5',
    ),
    (
      {'data__mixture__text': CIP},
      'data.mixture.text: chunk-interleaved rows (planner=interleave) cannot be'
      ' trained under data.document_mask=True',
    ),
    (
      {
        'data__mixture__text': CIP,
        'data__document_mask': False,
      },
      'data.mixture.text: chunk-interleaved rows (planner=interleave) cannot be'
      ' trained under data.restart_positions=True',
    ),
    (
      {'data__mixture__text': UTK},
      'data.mixture.text: chunk-interleaved rows (planner=untie) cannot be'
      ' trained under data.document_mask=True',
    ),
    (
      {'data__mixture__text__num_chunks': 2},
      'data.mixture.text.num_chunks=2 would not be read: planner=concat; remove'
      ' it or set planner=interleave',
    ),
    (
      {'data__mixture__text': {**CIP, 'bucket_len': 64}},
      'data.mixture.text.bucket_len=64 would not be read: planner=interleave;'
      ' remove it or set planner=buckets',
    ),
    (
      {'data__mixture__text__exempt': ['code']},
      "data.mixture.text.exempt=('code',) would not be read: planner=concat;"
      ' remove it or set planner=interleave or untie',
    ),
    (
      {'data__mixture__text': {**CIP, 'docs_per_row': 0}},
      'data.mixture.text.docs_per_row must be at least 1, got 0',
    ),
    (
      {'data__mixture__text': {**CIP, 'num_chunks': 0}},
      'data.mixture.text.num_chunks must be at least 1, got 0',
    ),
    (
      {'data__mixture__text': {**UTK, 'min_chunk_len': 0}},
      'data.mixture.text.min_chunk_len must be at least 1, got 0',
    ),
    (
      {'data__mixture__text__planner': 'buckets'},
      'data.mixture.text.bucket_len must be at least 1, got 0',
    ),
    (
      {'data__mixture__text': {**CIP, 'interleave_prob': 1.5}},
      'data.mixture.text.interleave_prob must lie in [0, 1], got 1.5',
    ),
    (
      {'data__mixture__text': {**UTK, 'chunk_probs': [0.5, 0.6]}},
      'data.mixture.text.chunk_probs are the probabilities of 1, 2, 3, ...'
      ' chunks: none negative, their sum 1, got (0.5, 0.6)',
    ),
    (
      {'data__mixture__text': {**UTK, 'chunk_probs': [1.5, -0.5]}},
      'data.mixture.text.chunk_probs are the probabilities',
    ),
    (
      {'data__mixture__text': {**UTK, 'domains': ['docs'], 'exempt': ['code']}},
      "data.mixture.text.exempt=('code',) must be among domains=('docs',)",
    ),
    (
      {'data__mixture__text': {**BUCKETS, 'max_len': 64}},
      'data.mixture.text.min_len=0, max_len=64, bucket_len=64: no document has',
    ),
    (
      {'data__mixture__text': {**BUCKETS, 'bucket_len': 48}},
      'data.seq_len=128 is not a multiple of mixture.text.bucket_len=48',
    ),
    (
      {
        **INTERLEAVED,
        'data__window_schedule': [{'step': 0, 'window': 64}],
      },
      'data.mixture.text: chunk-interleaved rows (planner=interleave) cannot be'
      ' trained under data.window_schedule',
    ),
    (
      {**INTERLEAVED, 'data__loss_normalizer': 'sequence'},
      'data.mixture.text: chunk-interleaved rows (planner=interleave) cannot be'
      ' trained under data.loss_normalizer=sequence: each chunk would count',
    ),
    (
      {**INTERLEAVED, 'data__label_first_token': False},
      'data.mixture.text: chunk-interleaved rows (planner=interleave) cannot be'
      ' trained under data.label_first_token=False',
    ),
    (
      {'data__weight_schedule': [{'step': 0, 'weights': EVEN}]},
      'data.weight_schedule: steps must rise from 1 or more, got 0',
    ),
    (
      {
        'data__weight_schedule': [
          {'step': 5, 'weights': EVEN},
          {'step': 5, 'weights': EVEN},
        ]
      },
      'data.weight_schedule: steps must rise from 1 or more, got 5, 5',
    ),
    (
      {
        'data__weight_schedule': [
          {'step': 5, 'weights': {'text': 0.5, 'chats': 0.5}}
        ]
      },
      'data.weight_schedule: step 5 has weights of chats, text, and the mixture'
      ' is of chat, tables, text: name each one',
    ),
    (
      {
        'data__weight_schedule': [{'step': 5, 'weights': {**EVEN, 'text': 0.5}}]
      },
      'data.weight_schedule: step 5: the weights must sum to 1, got 0.9',
    ),
    (
      {
        'data__weight_schedule': [
          {'step': 5, 'weights': {'text': -1, 'chat': 1, 'tables': 1}}
        ]
      },
      'data.weight_schedule: step 5: weight of text must not be negative',
    ),
    (
      {
        'data__window_schedule': [
          {'step': 9, 'window': 8},
          {'step': 3, 'window': 64},
        ]
      },
      'data.window_schedule: steps must rise from 0 or more, got 9, 3',
    ),
    (
      {'data__window_schedule': [{'step': 0, 'window': 256}]},
      'data.window_schedule: step 0 has window=256; it must lie between'
      ' window_multiple=1 and seq_len=128',
    ),
    (
      {
        'data__window_schedule': [{'step': 0, 'window': 8}],
        'data__window_multiple': 16,
      },
      'data.window_schedule: step 0 has window=8; it must lie between'
      ' window_multiple=16',
    ),
    (
      {'data__window_multiple': 16},
      'data.window_multiple=16 needs a window_schedule',
    ),
    (
      {'data__position_jumps': {'kind': 'pose', 'target_len': 128}},
      'data.position_jumps.target_len=128 must be above seq_len=128',
    ),
    (
      {'data__position_jumps': {'target_len': 256}},
      'data.position_jumps.target_len=256 needs kind=pose or',
    ),
    (
      {
        'data__position_jumps': {
          'kind': 'pose',
          'target_len': 256,
          'num_chunks': 3,
        }
      },
      'data.position_jumps.num_chunks=3 is of kind=longrecipe',
    ),
    (
      {'data__position_jumps': {'kind': 'longrecipe', 'target_len': 256}},
      'data.position_jumps.num_chunks must be at least 2, got 0',
    ),
    ({'data__num_workers': -1}, 'data.num_workers must be at least 0, got -1'),
    (
      {'data__mixture__text__min_len': 64, 'data__mixture__text__max_len': 64},
      'data.mixture.text.min_len=64, max_len=64, bucket_len=0: no document has',
    ),
    (
      {'data__seq_len': 64, 'data__mixture__tables__max_len': 64},
      'data.mixture.chat: conversations of up to'
      ' corpus.max_conversation_len=128 tokens do not fit whole into rows of'
      ' data.seq_len=64',
    ),
    (
      {'data__mixture__tables__max_len': 200},
      'data.mixture.tables.max_len=200 does not fit into rows of'
      ' data.seq_len=128',
    ),
    (
      {'data__mixture__tables__min_len': 16},
      'data.mixture.tables.min_len=16, max_len=128: need 32 <=',
    ),
    (
      {'data__mixture__tables__max_questions': 0},
      'data.mixture.tables.question_frac=0.5, max_questions=0: tables need',
    ),
    ({'corpus__heldout_frac': 1.0}, 'corpus.heldout_frac must lie in (0, 1)'),
    (
      {'model__vocab_size': 767},
      'model.vocab_size=767 has no room for the tokens of corpus.vocab_size',
    ),
    (
      {'data__mixture__chat__conversations': ('needle', 'poems')},
      'data.mixture.chat.conversations: poems is neither in corpus.conver',
    ),
    (
      {'corpus__conversations': {'needle': 0}},
      'data.mixture.chat: the corpus has no conversations. Ask for some',
    ),
    (
      {'model__num_heads': 3},
      'model.num_heads=3 is not a multiple of num_kv_heads=2',
    ),
    ({'model__head_dim': 7}, 'model.head_dim=7 must be even'),
    (
      {'train__micro_batches': 3},
      'data.batch_size=8 does not divide into train.micro_batches=3',
    ),
    ({'train__micro_batches': 0}, 'train.micro_batches must be at least 1'),
    ({'train__log_every': 0}, 'train.log_every must be at least 1, got 0'),
    ({'train__steps': -5}, 'train.steps must be at least 1, got -5'),
    ({'checkpoint__every_steps': 0}, 'checkpoint.every_steps must be at'),
    ({'model__num_kv_heads': 0}, 'model.num_kv_heads must be at least 1'),
    ({'model__mlp_chunk_len': -1}, 'model.mlp_chunk_len must be at least 0'),
    (
      {'model__mlp_chunk_width': 5},
      'model.mlp_chunk_width=5 does not divide hidden_dim=',
    ),
    (
      {'mesh__vocab_axes': ('tensor',)},
      "mesh.vocab_axes: 'tensor' is not one of fsdp, context",
    ),
    ({'mesh__slices': 0}, 'mesh.slices must be at least 1, got 0'),
    ({'model__scan_unroll': 0}, 'model.scan_unroll must be at least 1'),
    ({'optimizer__clip_norm': 0.0}, 'optimizer.clip_norm must be above 0'),
    (
      {'optimizer__name': 'muon', 'optimizer__adam_peak_lr': 0.0},
      'optimizer.name=muon needs adam_peak_lr > 0',
    ),
    (
      {'train__init_from': 'runs/x'},
      'train.init_from=runs/x would not be read: set carry_over',
    ),
    (
      {'rope__scaling': 'yarn', 'rope__factor': 4.0},
      'rope.scaling=yarn needs original_len',
    ),
    ({'rope__factor': 0.0}, 'rope.factor must be at least 1, got 0.0'),
    ({'rope__base': 0.0}, 'rope.base must be above 1, got 0.0'),
    ({'rope__base': math.nan}, 'rope.base must be above 1, got nan'),
    ({'rope__base': math.inf}, 'rope.base must be at most 1e+30, got inf'),
    ({'rope__factor': math.inf}, 'rope.factor must be at most 1e+30, got inf'),
    ({'rope__beta_fast': 0.0}, 'rope.beta_fast must be at least 1e-06, got 0'),
    (
      {'rope__low_freq_factor': 4.0},
      'rope.high_freq_factor must be above low_freq_factor=4.0, got 4.0',
    ),
  ],
)
def test_settings_that_cannot_run_are_refused(changes, says):
  assert_refused(f'config.{says}', **changes)


@pytest.mark.parametrize(
  'changes',
  [
    {'data__mixture__text': {**BUCKETS, 'max_len': 65}},
    {'data__mixture__text__planner': 'best_fit'},
    {
      'data__mixture__text': {
        **{**CIP, 'order': 'shuffle', 'split': 'random', 'exempt': ('code',)},
        'interleave_prob': 0.3,
      },
      'data__document_mask': False,
      'data__restart_positions': False,
    },
    # Conversations longer than a row, which this planner cuts.
    {
      'data__mixture__chat__planner': 'concat_drop',
      'corpus__max_conversation_len': 500,
    },
  ],
)
def test_planners_with_the_fields_they_read_are_taken(changes):
  from_config_dict(StageConfig, fields(**changes))


def test_embeddings_may_be_padded():
  stage = small.stage_config(model={'vocab_size': 1024})
  assert stage.model.vocab_size > stage.corpus.vocab_size


def test_rows_may_be_of_conversation_files():
  stage = small.stage_config()
  files = {'mine': ConversationFiles('chats.jsonl')}
  corpus = dataclasses.replace(stage.corpus, conversation_files=files)
  chat = dataclasses.replace(
    stage.data.mixture['chat'], conversations=('needle', 'mine')
  )
  mixture = {**stage.data.mixture, 'chat': chat}
  data = dataclasses.replace(stage.data, mixture=mixture)
  assert dataclasses.replace(stage, corpus=corpus, data=data)
  with pytest.raises(ConfigError, match='conversations: mine is neither'):
    dataclasses.replace(stage, data=data)


def test_long_conversations_of_files_are_for_stages_that_take_them():
  stage = small.stage_config()
  files = {'mine': ConversationFiles('chats.jsonl', max_len=500)}
  corpus = dataclasses.replace(stage.corpus, conversation_files=files)
  match = (
    r'^data\.mixture\.chat: conversations of up to'
    r' corpus\.conversation_files\.mine\.max_len=500 tokens do not fit whole'
  )
  with pytest.raises(ConfigError, match=match):
    dataclasses.replace(stage, corpus=corpus)
  # Other kinds are as short as before, so a stage of short rows may have them.
  chat = dataclasses.replace(
    stage.data.mixture['chat'], conversations=('extract', 'needle')
  )
  data = dataclasses.replace(
    stage.data, mixture={**stage.data.mixture, 'chat': chat}
  )
  assert dataclasses.replace(stage, corpus=corpus, data=data)
  with pytest.raises(ConfigError, match=r'^max_len must be at least 0'):
    ConversationFiles('chats.jsonl', max_len=-1)


def test_buckets_schedules_and_batch_options_are_read_from_a_config():
  text = fields()['data']['mixture']['text']
  buckets = {
    'code@64k': {**text, 'domains': ['code'], 'weight': 0.85, 'max_len': 512},
    'code@512k': {**text, 'domains': ['code'], 'weight': 0.15, 'min_len': 512},
  }
  weights = {'code@64k': 0, 'code@512k': 1}
  config = from_config_dict(
    StageConfig,
    fields(
      data__mixture=buckets,
      data__weight_schedule=[{'step': 100, 'weights': weights}],
      data__window_schedule=[{'step': 0, 'window': 32}],
      data__position_jumps={'kind': 'pose', 'target_len': 256},
    ),
  ).data
  assert config.mixture['code@512k'].min_len == 512
  assert config.weight_schedule[0].weights == weights
  assert config.window_schedule[0].window == 32
  assert config.position_jumps.target_len == 256
