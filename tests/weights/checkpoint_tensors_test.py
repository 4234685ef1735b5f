"""For texts of what length a stage of a run is made."""

import dataclasses
import json

import pytest

from longctx_jax.weights.checkpoint_tensors import CheckpointTensors
from tests import small


def length_of(workdir, *stages):
  """`max_len` of the last of `stages`, each the changes to a stage of 128."""
  made = [
    small.stage_config(name=f's{i}', **changes)
    for i, changes in enumerate(stages)
  ]
  workdir.mkdir()
  (workdir / 'config.json').write_text(
    json.dumps({'stages': [dataclasses.asdict(stage) for stage in made]})
  )
  return CheckpointTensors(workdir, made[-1].name, '').max_len


def start(path, carry_over='weights'):
  return {'init_from': str(path), 'carry_over': carry_over}


def test_it_is_that_of_the_longest_rows_so_far(tmp_path):
  assert length_of(tmp_path / 'run', {'data': {'seq_len': 256}}, {}) == 256


@pytest.mark.parametrize(
  ('name', 'rope', 'expected'),
  [
    ('llama', {}, 8192),
    ('llama', {'base': 5e5}, 8192),
    ('llama', {'scaling': 'ntk', 'factor': 2.0}, 8192),
    ('llama', {'base': 5_000.0}, 128),
    ('llama', {'scaling': 'linear', 'factor': 2.5}, 128),
    ('llama_linear', {}, 128),
    ('llama_linear', {'scaling': 'linear', 'factor': 2.5}, 8192),
  ],
)
def test_it_is_never_below_that_of_the_model_it_comes_from(
  make_folder, tmp_path, name, rope, expected
):
  folder = make_folder(name, max_position_embeddings=8192)
  first = {'train': start(folder)}
  then = {'train': {'carry_over': 'weights'}, 'rope': rope}
  assert length_of(tmp_path / 'run', first, then) == expected


def test_a_shorter_model_takes_nothing_away(make_folder, tmp_path):
  folder = make_folder()
  assert length_of(tmp_path / 'run', {'train': start(folder)}) == 128


def test_weights_that_were_drawn_again_do_not_come_from_it(
  make_folder, tmp_path
):
  folder = make_folder(max_position_embeddings=8192)
  stages = {'train': start(folder)}, {'train': {'carry_over': 'none'}}
  assert length_of(tmp_path / 'run', *stages) == 128


@pytest.mark.parametrize('config', [None, '{', '{"model_type": "gpt2"}'])
def test_a_model_that_is_gone_is_not_asked(make_folder, tmp_path, config):
  folder = make_folder(max_position_embeddings=8192)
  (folder / 'config.json').unlink()
  if config:
    (folder / 'config.json').write_text(config)
  assert length_of(tmp_path / 'run', {'train': start(folder)}) == 128
