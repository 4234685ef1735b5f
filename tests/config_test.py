"""What a config refuses, each in one line that names the field by its path."""

import copy
import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs.longskywork import pretrain, recipe
from longctx_jax.command_line import parse_flags
from longctx_jax.config import (
  ConfigError,
  StageConfig,
  add_defaults,
  config_hash,
  from_config_dict,
  stages_from_recipe,
  to_json,
)
from tests import small
from tests.stage_fields import DELETED, assert_refused, fields


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


def test_an_int_will_do_for_a_float():
  config = from_config_dict(StageConfig, fields(optimizer__clip_norm=2))
  assert config.optimizer.clip_norm == 2.0
  assert type(config.optimizer.clip_norm) is float


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


def test_what_a_file_leaves_to_a_default_is_a_field_of_it():
  """In every section and stage, so that each has a flag; nothing else moves."""
  config, as_given = recipe.get_config('tiny'), recipe.get_config('tiny')
  add_defaults(config)
  assert stages_from_recipe(config) == stages_from_recipe(as_given)
  assert config.model.mlp_chunk_len == 0
  for stage in config.stages.values():
    assert stage.mesh.slices == 1
    assert stage.optimizer.moment_dtype == 'float32'
  # One of several kinds of section: that of its own kind.
  assert {
    source.kind: 'planner' in source
    for stage in config.stages.values()
    for source in stage.data.mixture.values()
  } == {'documents': True, 'conversations': True, 'tables': False}
  for stage, whole in zip(
    config.stages.values(), stages_from_recipe(config), strict=True
  ):
    for section in ('data', 'mesh', 'optimizer', 'train', 'checkpoint', 'rope'):
      names = {f.name for f in dataclasses.fields(getattr(whole, section))}
      assert set(stage[section]) == names


def test_flags_reach_fields_that_the_file_leaves_to_a_default():
  argv = [
    '--config=configs/longskywork/recipe.py:tiny',
    '--config.model.mlp_chunk_len=5',
    '--config.stages.cip.mesh.slices=2',
    '--workdir=runs/x',
  ]
  config = parse_flags('recipe', argv, config=True).config
  assert config.model.mlp_chunk_len == 5
  assert config.stages.cip.mesh.slices == 2


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
