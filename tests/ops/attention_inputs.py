"""What the tests of attention share: inputs, rows of documents, comparison."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


def random_qkv(seed, shape, dtype=jnp.float32):
  """q, k, v and the gradient of the output; shape is (B, T, N, K, H)."""
  B, T, N, K, H = shape
  keys = jax.random.split(jax.random.key(seed), 4)
  return [
    jax.random.normal(key, (B, T, n, H), dtype)
    for key, n in zip(keys, (N, K, K, N), strict=True)
  ]


def with_gradients(attend):
  """Compiles (q, k, v, d_out, segment_ids) -> out, dq, dk, dv."""

  @jax.jit
  def run(q, k, v, d_out, segment_ids):
    out, vjp = jax.vjp(
      lambda q, k, v: attend(q, k, v, segment_ids=segment_ids), q, k, v
    )
    return out, *vjp(d_out)

  return run


def row(*lengths, T):
  """Segment ids of documents of these lengths, then padding."""
  ids = np.repeat(np.arange(len(lengths)) + 1, lengths)[:T]
  return np.pad(ids, (0, T - len(ids))).astype(np.int32)


@st.composite
def packed_row(draw, T):
  """A row of documents end to end, then padding, as packing makes them."""
  longest = draw(st.sampled_from([1, 3, T // 4, T]))
  return row(*draw(st.lists(st.integers(1, longest), max_size=T)), T=T)


def assert_equal_to(got, expected, rel=1e-5):
  """Relative norm, DESIGN.md's measure; inputs are of size 1."""
  for name, a, b in zip(('out', 'dq', 'dk', 'dv'), got, expected, strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.isfinite(a).all(), name
    # Where all cancels (one key: dq = 0), what is left is the rounding of the
    # summands, and those are of size 1.
    error, size = np.linalg.norm(a - b), max(np.linalg.norm(b), 1.0)
    assert error <= rel * size, (name, error, size)


def assert_equal_to_finite_differences(attend, arrays, segment_ids):
  """The gradients against no other gradient of ours; for a few tokens only."""
  *qkv, d_out = arrays

  @jax.jit
  def loss(qkv):
    return jnp.sum(attend(*qkv, segment_ids=segment_ids) * d_out)

  grads = jax.jit(jax.grad(loss))(tuple(qkv))
  # Central differences in float32: error h^2 from the step, 1e-7 / h from
  # rounding; at h = 1e-2 both are below 1e-3 of the gradient's size.
  step = 1e-2
  for i, grad in enumerate(grads):
    for index in np.ndindex(grad.shape):
      values = []
      for h in (step, -step):
        moved = [np.array(x) for x in qkv]
        moved[i][index] += h
        values.append(float(loss(tuple(moved))))
      assert abs((values[0] - values[1]) / (2 * step) - grad[index]) < 1e-3
