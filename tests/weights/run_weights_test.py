"""Weights of a run: read about twice whoever asks, and never if damaged."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

from longctx_jax.checkpoint import CheckpointError
from longctx_jax.config import MeshConfig
from longctx_jax.sharding import make_mesh
from longctx_jax.weights.convert import convert
from longctx_jax.weights.loaded_model import load_model
from longctx_jax.weights.model_folder import load_layers, load_params
from tests import small
from tests.weights.runs import nbytes, random_weights, write_run

STAGE = small.stage_config(
  name='s', model={'num_layers': 6, 'embed_dim': 64, 'hidden_dim': 512}
)


@pytest.fixture(scope='module')
def weights():
  return random_weights(STAGE.model)


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory, corpus_directory, weights):
  run = tmp_path_factory.mktemp('whole') / 'run'
  write_run(run, corpus_directory, STAGE, weights)
  return run


@pytest.fixture
def run(whole_run, tmp_path):
  return Path(shutil.copytree(whole_run, tmp_path / 'run'))


def bytes_read():
  (metric,) = ts.experimental_collect_matching_metrics(
    '/tensorstore/kvstore/file/bytes_read', include_zero_metrics=True
  )
  return sum(value['value'] for value in metric['values'])


def by_layer(weights):
  blocks = weights.params['blocks']
  return {
    **{k: x for k, x in weights.params.items() if k != 'blocks'},
    'layers': tuple(
      jax.tree.map(lambda x, i=i: x[i], blocks)
      for i in range(STAGE.model.num_layers)
    ),
  }


@pytest.mark.parametrize('load', [load_params, load_layers])
@pytest.mark.parametrize('mesh', [{}, {'context': 2, 'tensor': 2}])
def test_all_devices_share_what_is_read_once_it_is_verified(
  whole_run, weights, load, mesh
):
  mesh = make_mesh(MeshConfig(**mesh), jax.devices())
  model = load_model(str(whole_run))
  before = bytes_read()
  found = load(model.model, model.tensors, mesh)
  assert bytes_read() - before < 2.2 * nbytes(weights)
  expected = weights.params if load is load_params else by_layer(weights)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def data_file(run):
  files = (run / 'stages/1_s/checkpoints/1/state').rglob('d/*')
  return max(files, key=lambda path: path.stat().st_size)


def flip(path, part):
  content = bytearray(path.read_bytes())
  content[int(part * len(content))] ^= 0x10
  path.write_bytes(content)


def cut(path, part):
  path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


@pytest.mark.parametrize('damage', [flip, cut])
@pytest.mark.parametrize('part', np.linspace(0.02, 0.98, 7))
def test_of_a_damaged_run_nothing_is_converted(run, tmp_path, damage, part):
  damage(data_file(run), part)
  with pytest.raises(
    CheckpointError, match=r'/run/stages/1_s/checkpoints/1: params\.[a-z_.]+'
  ) as caught:
    convert(str(run), tmp_path / 'out')
  assert '\n' not in str(caught.value)
  assert [path.name for path in tmp_path.iterdir()] == ['run']
