"""The loss travels as (sum, weight): both add over any split of a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longctx_jax.batch import Batch
from longctx_jax.config import RopeConfig
from longctx_jax.loss import loss_sum_and_weight
from tests import small
from tests.random_params import graph_and_params

B, T, V = 6, 16, 32


@pytest.fixture(scope='module')
def model():
  config = dataclasses.replace(
    small.stage_config().model, vocab_size=V, loss_chunk_len=10
  )
  return nnx.merge(*graph_and_params(config, RopeConfig(10_000.0)))


@pytest.fixture(scope='module')
def batch():
  """Rows of very different weight, one of them of padding alone."""
  keys = jax.random.split(jax.random.key(0), 3)
  share = jnp.array([1.0, 0.7, 0.4, 0.1, 0.02, 0.0])[:, None]
  used = jnp.broadcast_to(jnp.arange(T)[None] < jnp.ceil(share * T), (B, T))
  return Batch(
    tokens=jax.random.randint(keys[0], (B, T), 0, V),
    targets=jax.random.randint(keys[1], (B, T), 0, V),
    loss_weights=used * share * jax.random.uniform(keys[2], (B, T)),
    segment_ids=used.astype(jnp.int32),
    positions=jnp.broadcast_to(jnp.arange(T)[None], (B, T)),
  )


def test_sum_and_weight_add_over_any_split_of_the_rows(model, batch):
  run = nnx.jit(loss_sum_and_weight)
  whole = run(model, batch)
  for rows in ([[0, 1, 2], [3, 4, 5]], [[5, 0, 2], [3, 1, 4]]):
    parts = [
      run(model, jax.tree.map(lambda x, r=r: x[jnp.array(r)], batch))
      for r in rows
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5)
    # A mean of the parts' means would be something else.
    means = np.mean([float(s) / max(float(w), 1e-8) for s, w in parts])
    assert abs(means - whole[0] / whole[1]) > 1e-3


def test_the_sum_is_of_the_weighted_token_losses(model, batch):
  loss_sum, weight = nnx.jit(loss_sum_and_weight)(model, batch)
  call = nnx.jit(lambda model, *inputs: model(*inputs))
  x = call(model, batch.tokens, batch.segment_ids, batch.positions)
  log_probs = jax.nn.log_softmax(x @ model.unembedding_matrix(), axis=-1)
  losses = -np.take_along_axis(
    np.asarray(log_probs), np.asarray(batch.targets)[..., None], axis=-1
  )[..., 0]
  expected = (losses * np.asarray(batch.loss_weights)).sum()
  np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
  np.testing.assert_allclose(weight, np.sum(batch.loss_weights), rtol=1e-6)
  assert loss_sum.dtype == weight.dtype == jnp.float32
