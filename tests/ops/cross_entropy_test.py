"""Chunked cross entropy against optax's, values and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.ops.cross_entropy import (
  cross_entropy_sum,
  token_losses_and_predictions,
)
from tests.jaxprs import equations

B, T, D, V = 2, 12, 8, 33
REL = 1e-5
CHUNKS = [1, 5, 8, 24, 1000]  # 24 tokens: 5 does not divide, 1000 exceeds


def inputs(seed, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seed), 4)
  x = jax.random.normal(keys[0], (B, T, D), dtype)
  unembedding = jax.random.normal(keys[1], (D, V), dtype)
  targets = jax.random.randint(keys[2], (B, T), 0, V)
  weights = jax.random.uniform(keys[3], (B, T))
  return x, unembedding, targets, weights


def plain_sum(x, unembedding, targets, weights):
  losses = optax.softmax_cross_entropy_with_integer_labels(
    x @ unembedding, targets
  )
  return jnp.sum(losses * weights)


@functools.cache
def compiled(chunk_len):
  """-> the sum, and 3 times its gradients by x and unembedding."""
  fn = plain_sum
  if chunk_len is not None:
    fn = functools.partial(cross_entropy_sum, chunk_len=chunk_len)

  @jax.jit
  def run(x, unembedding, targets, weights):
    total, vjp = jax.vjp(
      lambda x, u: fn(x, u, targets, weights), x, unembedding
    )
    return total, *vjp(jnp.float32(3))

  return run


@functools.cache
def without_gradient(chunk_len):
  return jax.jit(functools.partial(cross_entropy_sum, chunk_len=chunk_len))


def assert_close(got, expected, rel=REL):
  for a, b in zip(got, expected, strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.isfinite(a).all()
    assert np.linalg.norm(a - b) <= rel * np.linalg.norm(b)


@settings(deadline=None, max_examples=40)
@given(
  chunk_len=st.sampled_from(CHUNKS),
  weights=st.lists(
    st.sampled_from([0.0, 0.0, 1.0, 0.25]), min_size=B * T, max_size=B * T
  ),
  seed=st.integers(0, 1000),
)
def test_sum_and_gradients_equal_optax_for_any_chunk(chunk_len, weights, seed):
  x, unembedding, targets, _ = inputs(seed)
  arrays = x, unembedding, targets, jnp.array(weights).reshape(B, T)
  # The cotangent is 3: what comes in from outside scales the gradients.
  expected = compiled(None)(*arrays)
  assert_close(compiled(chunk_len)(*arrays), expected)
  # Without a gradient the sum takes another way.
  assert_close([without_gradient(chunk_len)(*arrays)], expected[:1])


def test_a_token_of_weight_zero_has_no_say_whatever_its_target():
  x, unembedding, targets, weights = inputs(0)
  weights = weights.at[:, 7:].set(0.0)
  run = compiled(5)
  before = run(x, unembedding, targets, weights)
  after = run(x, unembedding, targets.at[:, 7:].set(0), weights)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (before[1][:, 7:] == 0).all()
  assert (jnp.abs(before[1][:, :7]).max(axis=-1) > 0).all()


def test_all_weights_zero_give_zero_and_no_gradient():
  x, unembedding, targets, weights = inputs(0)
  for array in compiled(8)(x, unembedding, targets, 0 * weights):
    assert (array == 0).all()


def test_the_cotangent_scales_the_gradient():
  x, unembedding, targets, weights = inputs(1)

  def loss(x, scale):
    return scale * cross_entropy_sum(
      x, unembedding, targets, weights, chunk_len=5
    )

  one, many = jax.grad(loss)(x, 1.0), jax.grad(loss)(x, -40.0)
  np.testing.assert_allclose(many, -40 * one, rtol=1e-6)


def test_logits_of_1e4_do_not_overflow():
  x, unembedding, targets, weights = inputs(2)
  arrays = 1e4 * x, unembedding, targets, weights
  assert_close(compiled(5)(*arrays), compiled(None)(*arrays))


def test_bfloat16_inputs_are_summed_in_float32():
  arrays = inputs(3, jnp.bfloat16)
  x, unembedding, *rest = arrays
  exact = compiled(None)(
    x.astype(jnp.float32), unembedding.astype(jnp.float32), *rest
  )
  total, dx, d_unembedding = compiled(5)(*arrays)
  assert total.dtype == jnp.float32
  assert (dx.dtype, d_unembedding.dtype) == (jnp.bfloat16, jnp.bfloat16)
  np.testing.assert_allclose(total, exact[0], rtol=1e-5)
  # Gradients are rounded to bfloat16's 8 bits, and once more when scaled.
  assert_close((dx, d_unembedding), exact[1:], rel=2**-8)


def test_logits_of_all_tokens_never_exist():
  tokens, width, vocab = 256, 4, 512
  arrays = (
    jnp.ones((1, tokens, width)),
    jnp.ones((width, vocab)),
    jnp.zeros((1, tokens), int),
    jnp.ones((1, tokens)),
  )

  def largest(fn):
    jaxpr = jax.make_jaxpr(fn)(*arrays)
    return max(
      math.prod(v.aval.shape) for eqn in equations(jaxpr) for v in eqn.outvars
    )

  chunked = functools.partial(cross_entropy_sum, chunk_len=16)
  # What is looked for is found where it is.
  assert largest(plain_sum) == tokens * vocab
  for fn in (chunked, jax.value_and_grad(chunked, argnums=(0, 1))):
    assert largest(fn) == 16 * vocab
  evaluated = functools.partial(token_losses_and_predictions, chunk_len=16)
  assert (
    largest(lambda x, u, targets, _: evaluated(x, u, targets)) == 16 * vocab
  )


@pytest.mark.parametrize('chunk_len', CHUNKS)
def test_token_losses_and_predictions_are_those_of_the_whole(chunk_len):
  x, unembedding, targets, _ = inputs(4)
  losses, predictions = token_losses_and_predictions(
    x, unembedding, targets, chunk_len=chunk_len
  )
  logits = np.asarray(x, np.float64) @ np.asarray(unembedding, np.float64)
  np.testing.assert_array_equal(predictions, logits.argmax(axis=-1))
  exact = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(
    logits, np.asarray(targets)[..., None], axis=-1
  ).squeeze(-1)
  np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-5)
