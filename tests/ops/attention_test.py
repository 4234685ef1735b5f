"""Dense attention against loops, blockwise attention against dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.ops.attention import attention_mask, dense_attention, places
from longctx_jax.ops.blockwise_attention import blockwise_attention
from tests.ops.attention_inputs import (
  assert_equal_to,
  assert_equal_to_finite_differences,
  packed_row,
  random_qkv,
  with_gradients,
)

B, T, H = 2, 12, 8
# (N, K), block_len: few, because each is compiled. Blocks of 5 do not divide
# T, of 4 do, and of 100 exceed it.
PATHS = [((4, 2), 5), ((4, 4), 4), ((3, 1), 100)]

LAYOUTS = {
  'two documents and padding': [1] * 4 + [2] * 6 + [0] * 2,
  'documents of length 1': list(range(1, T + 1)),
  'all padding': [0] * T,
  'one document': [1] * T,
  'padding inside and first': [0] + [1] * 4 + [0] * 3 + [2] * 4,
}


def inputs(seed, N, K, dtype=jnp.float32):
  return random_qkv(seed, (B, T, N, K, H), dtype)


@functools.cache
def compiled(block_len):
  """(q, k, v, d_out, segment_ids) -> out, dq, dk, dv; None is dense."""
  if block_len is None:
    return with_gradients(dense_attention)
  return with_gradients(
    functools.partial(blockwise_attention, block_len=block_len)
  )


@st.composite
def layouts(draw):
  rows = []
  for _ in range(B):
    if draw(st.booleans()):
      rows.append(draw(packed_row(T)))
    else:  # anything at all: the mask is defined for it too
      ids = draw(st.lists(st.integers(0, 3), min_size=T, max_size=T))
      rows.append(np.array(ids))
  return jnp.asarray(np.stack(rows), jnp.int32)


def test_the_mask_is_the_drawn_one():
  drawn = [
    '1....',
    '11...',
    '..1..',
    '..11.',
    '.....',
  ]
  mask = attention_mask(
    *[places(1, 5, jnp.array([[1, 1, 2, 2, 0]]), None)] * 2
  )[0]
  assert [''.join('.1'[int(m)] for m in row) for row in mask] == drawn


@pytest.mark.parametrize('heads', [heads for heads, _ in PATHS])
def test_dense_attention_equals_plain_loops(heads):
  N, K = heads
  q, k, v, _ = (np.asarray(x, np.float64) for x in inputs(0, N, K))
  segment_ids = np.array(
    [LAYOUTS['two documents and padding'], LAYOUTS['padding inside and first']]
  )
  expected = np.zeros((B, T, N, H))
  for b in range(B):
    for t in range(T):
      if segment_ids[b, t] == 0:
        continue
      seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
      for n in range(N):
        g = n // (N // K)
        scores = [q[b, t, n] @ k[b, s, g] / np.sqrt(H) for s in seen]
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        expected[b, t, n] = sum(
          w * v[b, s, g] for w, s in zip(weights, seen, strict=True)
        )
  out = compiled(None)(*inputs(0, N, K), jnp.asarray(segment_ids))[0]
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
  segment_ids=layouts(),
  path=st.sampled_from(PATHS),
  seed=st.integers(0, 1000),
)
def test_blockwise_equals_dense_on_any_layout(segment_ids, path, seed):
  heads, block_len = path
  arrays = (*inputs(seed, *heads), segment_ids)
  assert_equal_to(compiled(block_len)(*arrays), compiled(None)(*arrays))


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_blockwise_equals_dense_on_named_layouts(layout, path):
  heads, block_len = path
  segment_ids = jnp.array([LAYOUTS[layout], LAYOUTS['one document']])
  arrays = (*inputs(1, *heads), segment_ids)
  assert_equal_to(compiled(block_len)(*arrays), compiled(None)(*arrays))


@pytest.mark.parametrize('block_len', [None, 5])
def test_padding_gives_exactly_zeros_and_zero_gradients(block_len):
  segment_ids = jnp.array(
    [LAYOUTS['padding inside and first'], LAYOUTS['all padding']]
  )
  out, *grads = compiled(block_len)(*inputs(3, 4, 2), segment_ids)
  padding = np.asarray(segment_ids == 0)
  for array in (out, *grads):
    assert (np.asarray(array)[padding] == 0).all()
    assert np.isfinite(array).all()
    # What is checked is not zero all over.
    assert np.abs(np.asarray(array)[~padding]).max() > 0.1


@pytest.mark.parametrize('block_len', [None, 5])
def test_no_document_sees_another_and_no_token_sees_the_future(block_len):
  """Exactly: not one bit changes where nothing may be seen."""
  segment_ids = jnp.array([LAYOUTS['two documents and padding']] * B)
  q, k, v, d_out = inputs(4, 4, 2)
  run = compiled(block_len)
  before = np.asarray(run(q, k, v, d_out, segment_ids)[0])
  for changed in (1, 6):  # a token of document 1, one of document 2
    other = [x.at[:, changed].add(3.0) for x in (q, k, v)]
    after = np.asarray(run(*other, d_out, segment_ids)[0])
    document = np.asarray(segment_ids[0]) == segment_ids[0, changed]
    may_change = document & (np.arange(T) >= changed)
    np.testing.assert_array_equal(after[:, ~may_change], before[:, ~may_change])
    moved = np.abs(after - before).max(axis=(0, 2, 3))
    assert (moved[may_change] > 0).all()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_very_large_scores_do_not_overflow(size):
  segment_ids = jnp.array([LAYOUTS['two documents and padding']] * B)
  q, k, v, d_out = inputs(5, 4, 2)
  # Scores around size, apart from each other by a few units.
  q = q.at[..., 0].set(1.0)
  k = k.at[..., 0].set(size * H**0.5)
  arrays = (q, k, v, d_out, segment_ids)
  got, expected = compiled(5)(*arrays), compiled(None)(*arrays)
  # Scores of 1e4 are float32 multiples of 1e-3, in both paths alike.
  assert_equal_to(got, expected, rel=1e-2)
  assert (np.abs(got[0]) <= np.abs(v).max()).all()


@pytest.mark.parametrize('block_len', [None, 2])
def test_gradients_equal_finite_differences(block_len):
  attend = (
    dense_attention
    if block_len is None
    else functools.partial(blockwise_attention, block_len=block_len)
  )
  segment_ids = jnp.array([[1, 1, 1, 2, 0]])
  arrays = random_qkv(6, (1, 5, 2, 1, 2))
  assert_equal_to_finite_differences(attend, arrays, segment_ids)


def test_bfloat16_inputs_stay_close_to_the_float32_result():
  segment_ids = jnp.array([LAYOUTS['two documents and padding']] * B)
  arrays = inputs(7, 4, 2, jnp.bfloat16)
  exact = compiled(None)(*(x.astype(jnp.float32) for x in arrays), segment_ids)
  dense = compiled(None)(*arrays, segment_ids)
  assert all(x.dtype == jnp.bfloat16 for x in dense)
  # bfloat16 keeps 8 bits: the result is rounded by up to 2^-9, the gradients
  # twice.
  assert_equal_to(dense, exact, rel=2**-8)
  # Blockwise rounds where dense does and nowhere else: scaling the queries in
  # bfloat16 would already cost 2^-11.
  blockwise_ = compiled(5)(*arrays, segment_ids)
  assert_equal_to(blockwise_, dense, rel=2**-13)


def test_the_gradient_of_values_is_accumulated_in_float32():
  """bfloat16 has steps of 2 above 256, so sums of 0.9 would stall there."""
  length, block_len = 512, 128
  ones = jnp.ones((1, length, 1, 2), jnp.bfloat16)
  segment_ids = jnp.ones((1, length), int)
  # Value 0 has weight 1 / (t + 1) in query t: query 0 sends it 256, and each
  # block of queries but the first 0.9 in all.
  sent = (1 + np.arange(length)) * 0.9 / block_len
  sent[:block_len] = 0
  sent[0] = 256
  d_out = jnp.asarray(sent, jnp.bfloat16)[None, :, None, None] * ones

  @jax.jit
  def run(v):
    _, vjp = jax.vjp(
      lambda v: blockwise_attention(
        ones, ones, v, segment_ids=segment_ids, block_len=block_len
      ),
      v,
    )
    return vjp(d_out)[0]

  # Rounded to bfloat16 once, at the end.
  assert abs(float(run(ones)[0, 0, 0, 0]) - (256 + 3 * 0.9)) <= 1


@pytest.mark.parametrize('attend', [dense_attention, blockwise_attention])
def test_heads_that_do_not_divide_are_refused_with_both_numbers(attend):
  q, k, v, _ = inputs(8, 4, 3)
  with pytest.raises(ValueError, match=r'num_heads=4 .* num_kv_heads=3'):
    attend(q, k, v, segment_ids=jnp.ones((B, T), int))


def test_memory_is_linear_in_the_length():
  """Four times as long a row takes four times the memory, not sixteen."""

  def temporary_bytes(length, attend):
    shape = jax.ShapeDtypeStruct((1, length, 2, H), jnp.float32)
    compiled = with_gradients(attend).lower(
      *[shape] * 4, jax.ShapeDtypeStruct((1, length), jnp.int32)
    )
    return compiled.compile().memory_analysis().temp_size_in_bytes

  short, long = (temporary_bytes(n, blockwise_attention) for n in (2048, 8192))
  assert long < 5 * short
  dense = temporary_bytes(2048, dense_attention)
  assert dense > 4 * 2 * 2048**2  # the scores of two heads alone
  assert short < dense / 4


@pytest.mark.parametrize('attend', [dense_attention, blockwise_attention])
def test_fewer_queries_than_keys_must_say_where_they_stand(attend):
  q, k, v, _ = inputs(9, 4, 2)
  ids = jnp.array([LAYOUTS['two documents and padding']] * B)
  whole = attend(q, k, v, segment_ids=ids)
  late = slice(7, T)
  part = attend(
    q[:, late],
    k,
    v,
    segment_ids=ids[:, late],
    key_segment_ids=ids,
    index=jnp.arange(T)[late],
    key_index=jnp.arange(T),
  )
  np.testing.assert_allclose(part, whole[:, late], rtol=1e-5, atol=1e-6)
  for missing in (
    {},
    {'index': jnp.arange(T)[late]},
    {'segment_ids': ids[:, late]},
  ):
    with pytest.raises(ValueError, match='5 queries and 12 keys'):
      attend(q[:, late], k, v, **missing)
