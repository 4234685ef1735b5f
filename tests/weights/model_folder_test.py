"""Model folders: parameters on a mesh, logits, and what does not fit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from longctx_jax.config import MeshConfig
from longctx_jax.model import Transformer
from longctx_jax.sharding import make_mesh, param_shardings
from longctx_jax.weights import model_folder
from longctx_jax.weights.model_folder import load_params, open_model_folder
from longctx_jax.weights.tensor_table import (
  WeightsError,
  entries,
  tensor_names,
  to_theirs,
)
from tests.weights import tiny_models

REFERENCE = json.loads(
  Path(__file__).with_name('reference_logits.json').read_text()
)
# Divides into 4 x 2 by every axis that a mesh splits.
EVEN = {'vocab_size': 64, 'num_key_value_heads': 2}


def load(folder, mesh_config=None, **dtypes):
  opened = open_model_folder(folder, **dtypes)
  config = mesh_config or MeshConfig()
  devices = jax.devices() if mesh_config else jax.devices()[:1]
  mesh = make_mesh(config, devices)
  return opened, load_params(opened.architecture.model, opened.tensors, mesh)


def leaves(params):
  return {
    '.'.join(k.key for k in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


@pytest.mark.parametrize('name', tiny_models.FAMILIES)
def test_logits_are_those_of_transformers(name, make_folder):
  """The numbers are stored; make_reference_logits.py beside it made them."""
  expected = np.array(REFERENCE['logits'][name])
  found = tiny_models.our_logits(make_folder(name))
  np.testing.assert_allclose(
    found[:, REFERENCE['positions']], expected, atol=1e-4
  )


def test_the_parameters_are_the_models_own_by_name_shape_and_type(make_folder):
  for name in ('llama', 'qwen2_tied'):
    opened, params = load(make_folder(name), param_dtype='bfloat16')
    model, rope = opened.architecture.model, opened.architecture.rope
    expected = nnx.to_pure_dict(
      nnx.state(
        nnx.eval_shape(lambda: Transformer(model, rope, rngs=nnx.Rngs(0)))  # noqa: B023
      )
    )
    described = [
      jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)
      for tree in (params, expected)
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize(
  'mesh',
  [
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(data=2, fsdp=2, context=2),
    MeshConfig(fsdp=8),
  ],
)
def test_each_device_gets_its_own_part(make_folder, mesh):
  folder = make_folder('qwen2', **EVEN)
  _, whole = load(folder)
  _, split = load(folder, mesh)
  shardings = leaves(param_shardings(split, make_mesh(mesh)))
  for path, x in leaves(split).items():
    assert x.sharding == shardings[path]
    np.testing.assert_array_equal(x, leaves(whole)[path])


def test_no_device_reads_what_another_keeps(make_folder):
  """Every number is read once, the scales that all devices have too."""
  folder = make_folder('llama', **EVEN)
  opened = open_model_folder(folder)
  read = []

  class Counting:
    def __getattr__(self, name):
      return getattr(opened.tensors, name)

    def read(self, name, index=()):
      x = opened.tensors.read(name, index)
      read.append((name, x.size))
      return x

  mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
  load_params(opened.architecture.model, Counting(), mesh)
  for name, shape in opened.tensors.shapes.items():
    sizes = [size for n, size in read if n == name]
    assert len(sizes) == (8 if len(shape) == 2 else 1), name
    assert sum(sizes) == np.prod(shape), name


def test_in_and_out_again_gives_the_same_bits(make_folder):
  for dtype in ('float32', 'bfloat16'):
    folder = make_folder(
      'qwen2' if dtype == 'float32' else 'llama', jax.numpy.dtype(dtype)
    )
    opened, params = load(folder, param_dtype=dtype)
    model, found = opened.architecture.model, leaves(params)
    for entry in entries(model):
      for layer, name in enumerate(tensor_names(entry, model)):
        x = np.asarray(found[entry.path])
        x = to_theirs(x[layer] if entry.in_layers else x, entry)
        expected = opened.tensors.read(name)
        assert x.dtype == expected.dtype
        np.testing.assert_array_equal(x, expected)


def test_all_tokens_that_end_a_text_are_known(make_folder):
  folder = make_folder('llama', eos_token_id=[2, 3])
  generation = folder / 'generation_config.json'
  generation.write_text(json.dumps({'eos_token_id': [3, 9]}))
  assert open_model_folder(folder).architecture.eos_ids == (2, 3, 9)


@pytest.mark.parametrize('name', ['config', 'generation_config'])
def test_the_end_of_a_text_is_a_token_of_the_model(make_folder, name):
  folder = make_folder('llama', eos_token_id=2)
  path = folder / f'{name}.json'
  fields = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**fields, 'eos_token_id': [2, 70_000]}))
  with pytest.raises(WeightsError, match=r'eos_token_id is 70000 .* 0 to \d+$'):
    open_model_folder(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_folder):
  folder = make_folder('llama', vocab_size=60)
  with pytest.raises(
    WeightsError, match='tokenizer has 61 tokens, the model 60'
  ):
    open_model_folder(folder).tokenizer()
  assert open_model_folder(make_folder('qwen2')).tokenizer().vocab_size == 61


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, r'cannot read .*config\.json'),
    ('{"model_type": ', r'cannot read .*config\.json'),
    ('[1]', r'config\.json is no JSON object'),
    ('{}', 'model_type is missing'),
  ],
)
def test_a_bad_config_is_named(make_folder, text, message):
  folder = make_folder()
  (folder / 'config.json').unlink()
  if text is not None:
    (folder / 'config.json').write_text(text)
  with pytest.raises(WeightsError, match=message):
    open_model_folder(folder)


@pytest.mark.parametrize('rows', [4096, 20])
def test_a_tied_model_may_hold_its_embedding_twice(
  make_folder, monkeypatch, rows
):
  """And nothing else: transformers would not tie the two."""
  monkeypatch.setattr(model_folder, '_ROWS', rows)
  folder = make_folder('llama')
  config = folder / 'config.json'
  fields = json.loads(config.read_text()) | {'tie_word_embeddings': True}
  config.write_text(json.dumps(fields))
  with pytest.raises(
    WeightsError, match=r'lm_head\.weight is not model\.embed_tokens\.weight'
  ):
    open_model_folder(folder)
  path = folder / 'model.safetensors'
  tensors = load_file(path)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  save_file(tensors, path)
  open_model_folder(folder)
  tensors['lm_head.weight'] = tensors['lm_head.weight'].copy()
  tensors['lm_head.weight'][-1, -1] += 1
  save_file(tensors, path)
  with pytest.raises(WeightsError, match=r'lm_head\.weight is not'):
    open_model_folder(folder)
  tensors['lm_head.weight'] = tensors['lm_head.weight'][:-1].copy()
  save_file(tensors, path)
  with pytest.raises(WeightsError, match=r'lm_head\.weight is not'):
    open_model_folder(folder)


def test_weights_of_another_model_are_refused(make_folder):
  folder = make_folder()
  config = folder / 'config.json'
  fields = json.loads(config.read_text())
  config.write_text(json.dumps({**fields, 'num_hidden_layers': 3}))
  with pytest.raises(
    WeightsError, match=r'lacks the tensor model\.layers\.2\.'
  ):
    open_model_folder(folder)


def test_a_billion_layers_are_refused_before_they_are_counted(make_folder):
  folder = make_folder()
  config = folder / 'config.json'
  fields = json.loads(config.read_text())
  config.write_text(json.dumps({**fields, 'num_hidden_layers': 10**9}))
  with pytest.raises(
    WeightsError, match='holds 21 tensors, too few for the 1000000000 layers'
  ):
    open_model_folder(folder)
