"""Training that starts from a pretrained model."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from longctx_jax.config import ConfigError, MeshConfig
from longctx_jax.recipe import rope_before, run_recipe, start_state
from longctx_jax.sharding import make_mesh
from longctx_jax.train_step import init_state
from longctx_jax.weights.hf_config import hf_config
from longctx_jax.weights.safetensors_files import (
  TensorSpec,
  write_safetensors,
)
from longctx_jax.weights.tensor_table import tensor_shapes
from tests import small
from tests.weights import tiny_models

LAYERS = 3


def stage_from(folder, **changes):
  train = {'init_from': str(folder), 'carry_over': 'weights', 'steps': 2}
  return small.stage_config(
    train=train | changes.pop('train', {}),
    model={'num_layers': LAYERS} | changes.pop('model', {}),
    **changes,
  )


@pytest.fixture
def folder(tmp_path, corpus_directory):
  """A pretrained model with the corpus' tokenizer."""
  stage = small.stage_config(model={'num_layers': LAYERS})
  folder = tmp_path / 'pretrained'
  folder.mkdir()
  shutil.copyfile(
    corpus_directory / 'tokenizer.model', folder / 'tokenizer.model'
  )
  fields = hf_config(
    stage.model,
    dataclasses.replace(stage.rope, base=77_000.0),
    max_len=128,
    dtype='float32',
    bos_id=1,
    eos_ids=(2,),
  )
  (folder / 'config.json').write_text(json.dumps(fields))
  shapes = tensor_shapes(stage.model)
  made = tiny_models.random_tensors(shapes)
  specs = [TensorSpec(n, s, np.dtype(np.float32)) for n, s in shapes.items()]
  write_safetensors(folder, specs, made.__getitem__)
  return folder, made


def one_device():
  return make_mesh(MeshConfig(), jax.devices()[:1])


def test_the_first_stage_starts_with_the_weights_of_the_folder(folder, corpus):
  path, made = folder
  stage = stage_from(path)
  state = start_state(stage, corpus, one_device(), None)
  fresh = init_state(stage, one_device())
  gate = np.asarray(state.params['blocks']['mlp']['gate'])
  for layer in range(LAYERS):
    name = f'model.layers.{layer}.mlp.gate_proj.weight'
    np.testing.assert_array_equal(gate[layer], made[name].T)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
  assert rope_before(stage, None).base == 77_000.0


def test_a_smaller_stage_takes_the_first_layers_and_says_so(
  folder, corpus, caplog
):
  path, made = folder
  stage = stage_from(path, model={'num_layers': 2})
  with caplog.at_level(logging.WARNING):
    state = start_state(stage, corpus, one_device(), None)
  assert 'takes the first 2 of the 3 layers' in caplog.text
  np.testing.assert_array_equal(
    state.params['blocks']['mlp']['down'][1],
    made['model.layers.1.mlp.down_proj.weight'].T,
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'hidden_dim': 40}}, r'model\.hidden_dim=40, but .* has '),
    ({'model': {'num_layers': 4}}, r'model\.num_layers=4, but .* has 3'),
    ({'model': {'qkv_bias': True}}, r'model\.qkv_bias=True, but .* has False'),
    (
      {'train': {'carry_over': 'weights_and_optimizer'}},
      r'has weights alone: set train\.carry_over=weights',
    ),
  ],
)
def test_another_model_is_refused_before_anything_is_made(
  folder, tmp_path, changes, message
):
  stage = stage_from(folder[0], mesh={'fsdp': -1}, **changes)
  with pytest.raises(ConfigError, match=message):
    run_recipe((stage,), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_another_tokenizer_is_refused(folder, corpus, make_folder):
  path, _ = folder
  (path / 'tokenizer.model').unlink()
  shutil.copyfile(make_folder() / 'tokenizer.json', path / 'tokenizer.json')
  with pytest.raises(ConfigError, match=r'set corpus\.tokenizer_path to that'):
    start_state(stage_from(path), corpus, one_device(), None)


def test_a_start_that_is_not_there_is_refused_at_once(tmp_path):
  stage = stage_from('nowhere', mesh={'fsdp': -1})
  with pytest.raises(ConfigError, match='init_from=nowhere is no directory'):
    run_recipe((stage,), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
