"""What a config refuses, each in one line that names the field by its path."""

import copy
import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs.longskywork import pretrain, recipe
from longctx_jax.config import (
  ConfigError,
  StageConfig,
  config_hash,
  from_config_dict,
  stages_from_recipe,
  to_json,
)
from longctx_jax.corpus_config import ConversationFiles
from tests import small


def fields(**changes):
  """A small stage as a dictionary; `changes` by dotted path, __ for a dot."""
  tree = json.loads(to_json(small.stage_config()))
  for path, value in changes.items():
    *parents, last = path.split('__')
    section = tree
    for name in parents:
      section = section[name]
    if value is DELETED:
      del section[last]
    else:
      section[last] = value
  return tree


DELETED = object()


def assert_refused(says, **changes):
  with pytest.raises(ConfigError) as error:
    from_config_dict(StageConfig, fields(**changes))
  message = str(error.value)
  assert message.startswith(says)
  assert '\n' not in message
  return message


def test_an_unknown_field_is_refused_with_the_nearest_name():
  assert_refused(
    'config.train.stesp: no such field; did you mean steps?', train__stesp=3
  )
  assert_refused('config.trian: no such field; did you mean train?', trian={})
  message = assert_refused('config.mesh.zzz: no such field; has', mesh__zzz=1)
  assert 'data, fsdp, context, tensor' in message


def test_a_missing_field_is_refused():
  assert_refused('config.model.head_dim is missing', model__head_dim=DELETED)
  assert_refused('config.evals is missing', evals=DELETED)


@pytest.mark.parametrize(
  ('path', 'value', 'says'),
  [
    ('train__steps', '3', "expected int, got str '3'"),
    ('train__steps', 3.0, 'expected int, got float 3.0'),
    ('train__steps', True, 'expected int, got bool True'),
    ('train__steps', None, 'expected int, got NoneType None'),
    ('optimizer__peak_lr', True, 'expected float, got bool True'),
    ('optimizer__peak_lr', '1e-3', "expected float, got str '1e-3'"),
    ('data__document_mask', 1, 'expected bool, got int 1'),
    ('name', 7, 'expected str, got int 7'),
    ('model', 3, 'expected a section, got 3'),
    ('data__mixture', [], 'expected a dictionary, got []'),
    ('evals__table_lengths', 96, 'expected a tuple, got 96'),
    ('evals__table_lengths', ['96'], "expected int, got str '96'"),
    ('optimizer__schedule', 'cosin', "'cosin' is not one of cosine, linear"),
    (
      'model__remat',
      'some',
      "'some' is not one of none, dots, attention, full",
    ),
  ],
)
def test_a_value_of_another_type_is_refused(path, value, says):
  where = f'config.{path.replace("__", ".")}: '
  assert_refused(where + says, **{path: value})


def test_the_kind_of_a_source_decides_which_fields_it_has():
  assert_refused(
    "config.data.mixture.text.kind: 'tapes' is not one of documents",
    data__mixture__text__kind='tapes',
  )
  assert_refused(
    'config.data.mixture.chat.num_chunks: no such field',
    data__mixture__chat__num_chunks=2,
  )


EVEN = {'text': 0.6, 'chat': 0.2, 'tables': 0.2}


def test_an_int_will_do_for_a_float():
  config = from_config_dict(StageConfig, fields(optimizer__clip_norm=2))
  assert config.optimizer.clip_norm == 2.0
  assert type(config.optimizer.clip_norm) is float


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


def test_a_recipe_names_the_stage_whose_field_is_wrong():
  config = recipe.get_config('tiny')
  config.stages.cip.data.batch_size = 3
  config.stages.cip.train.micro_batches = 2
  with pytest.raises(ConfigError, match=r'^config\.stages\.cip\.data\.batch_'):
    stages_from_recipe(config)
  config = recipe.get_config('tiny')
  config.stages.sft.data.mixture = ConfigDict({})
  with pytest.raises(ConfigError, match=r'^config\.stages\.sft\.data\.mixture'):
    stages_from_recipe(config)


def test_a_recipe_gives_its_stages_in_order_with_what_they_share():
  config = recipe.get_config('tiny')
  config.seed = 5
  stages = stages_from_recipe(config)
  assert [s.name for s in stages] == ['pretrain', 'cip', 'sft', 'long_sft']
  assert {s.seed for s in stages} == {5}
  assert len({config_hash(s.model) for s in stages}) == 1
  config.stage_order = ('pretrain', 'cip')
  with pytest.raises(ConfigError, match=r'stage_order .* does not list'):
    stages_from_recipe(config)


def test_a_file_of_one_stage_is_no_recipe():
  with pytest.raises(ConfigError, match=r'stages is missing: .*longctx train'):
    stages_from_recipe(pretrain.get_config('tiny'))


def test_json_and_back_is_the_same_config():
  for config in (
    small.stage_config(),
    *stages_from_recipe(recipe.get_config('')),
  ):
    back = from_config_dict(StageConfig, json.loads(to_json(config)))
    assert back == config
    assert config_hash(back) == config_hash(config)


def test_a_config_dict_and_a_dictionary_give_the_same():
  assert from_config_dict(StageConfig, ConfigDict(fields())) == (
    small.stage_config()
  )


def leaf_setters(value, path='config'):
  """(path, setter) of every leaf below a tree of dataclasses and dicts."""
  if dataclasses.is_dataclass(value):
    items = [
      (f.name, getattr(value, f.name), object.__setattr__)
      for f in dataclasses.fields(value)
    ]
  else:
    items = [(k, v, dict.__setitem__) for k, v in value.items()]
  for name, item, set_item in items:
    below = f'{path}.{name}'
    if dataclasses.is_dataclass(item) or isinstance(item, dict):
      yield from leaf_setters(item, below)
    else:
      yield below, lambda new, s=set_item, v=value, n=name: s(v, n, new)


def test_the_hash_changes_with_every_field():
  config = small.stage_config()
  paths = [path for path, _ in leaf_setters(config)]
  assert 'config.data.mixture.tables.tasks.retrieve' in paths
  hashes = {config_hash(config)}
  for path in paths:
    changed = copy.deepcopy(config)
    dict(leaf_setters(changed))[path]('another value')
    hashes.add(config_hash(changed))
  assert len(hashes) == 1 + len(paths)
  assert config_hash(config, config) not in hashes
