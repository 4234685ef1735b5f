"""All evaluations of a small, untrained model: what is reported, as JSON."""

import json
import math

import jax
import pytest

from longctx_jax import sharding
from longctx_jax.config import MeshConfig
from longctx_jax.evals.runner import evaluate
from longctx_jax.train_step import init_state
from tests import small


def test_every_suite_is_reported_at_every_length(corpus):
  config = small.stage_config()
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  params = init_state(config, mesh).params
  results = evaluate(config, params, corpus, mesh)
  assert json.loads(json.dumps(results)) == results
  assert list(results['needle']) == ['single', 'multi']
  for grid in results['needle'].values():
    assert {length: list(cells) for length, cells in grid.items()} == {
      '64': ['0', '1'],
      '128': ['0', '1'],
    }
  assert list(results['tables']) == ['96']
  # Close to uniform: nothing is learned yet.
  log_vocab = math.log(config.model.vocab_size)
  assert results['val_loss'] == pytest.approx(log_vocab, rel=0.2)
  assert list(results['val_loss_by_position']) == ['0-64', '64-128']
