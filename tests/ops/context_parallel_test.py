"""Every kind, layout and mesh against dense attention, values and gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.ops.attention import dense_attention
from longctx_jax.ops.blockwise_attention import KEPT
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.sequence_layout import from_layout, to_layout
from tests.jaxprs import primitives
from tests.ops.attention_inputs import (
  assert_equal_to,
  assert_equal_to_finite_differences,
  packed_row,
  random_qkv,
  row,
  with_gradients,
)

B, T, H = 2, 48, 8
BLOCK_LEN = 3  # does not divide the 16 tokens of a shard of 3: one is short


class Path(NamedTuple):
  """One way to compute it."""

  kind: str
  layout: str
  axes: tuple[tuple[str, int], ...]
  N: int = 4
  K: int = 2

  def parallel(self):
    names, sizes = zip(*self.axes, strict=True)
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    return ContextParallel(
      jax.sharding.Mesh(devices, names), self.kind, self.layout
    )

  @property
  def num_shards(self):
    return dict(self.axes)['context']


EIGHT = (('context', 8),)
# Rows, tokens and heads split at once; the rows differ in how far keys go.
MIXED = (('data', 2), ('context', 2), ('tensor', 2))
PATHS = [
  Path('ring', 'contiguous', EIGHT),
  Path('ring', 'zigzag', EIGHT),
  Path('ring', 'zigzag', (('context', 3),), N=3, K=3),
  Path('ring', 'contiguous', MIXED),
  # Here one row would go 3 up, and another 1 up and 1 down.
  Path('ring', 'zigzag', (('data', 2), ('context', 4))),
  Path('allgather', 'contiguous', EIGHT),
  Path('allgather', 'zigzag', MIXED),
  Path('ulysses', 'contiguous', EIGHT, N=8, K=8),
  Path('ulysses', 'zigzag', (('context', 4),)),  # more shards than K
  Path('ulysses', 'zigzag', (('context', 4),), N=12, K=6),
  Path('ring', 'contiguous', (('data', 2), ('context', 1))),
]
IDS = ['-'.join(str(part) for part in path) for path in PATHS]

# On 8 shards of 6 tokens.
ROWS = {
  'one document': row(T, T=T),
  'packed documents': row(7, 3, 11, 9, 8, 10, T=T),
  'documents of two chunks': row(12, 12, 12, 12, T=T),
  'padding': row(7, 13, T=T),
  'a document over several shards': row(5, 30, 13, T=T),
  'documents of length 1': row(*[1] * T, T=T),
  'all padding on one shard': row(10, 31, T=T),
  'nothing but padding': row(T=T),
}


@functools.cache
def dense():
  run = with_gradients(dense_attention)
  return lambda *arrays: list(run(*arrays))


def attend_on(path):
  """The path's attention, of arrays stored in its layout."""
  return functools.partial(
    context_parallel_attention, parallel=path.parallel(), block_len=BLOCK_LEN
  )


@functools.cache
def parallel(path):
  """As `dense`, computed on the path's mesh, in the order of the rows."""
  store = functools.partial(
    to_layout, layout=path.layout, num_shards=path.num_shards
  )
  run = with_gradients(attend_on(path))

  def in_order(*arrays):
    return [
      from_layout(x, path.layout, path.num_shards)
      for x in run(*map(store, arrays))
    ]

  return in_order


def arrays_of(path, seed=0, dtype=jnp.float32):
  return random_qkv(seed, (B, T, path.N, path.K, H), dtype)


@pytest.mark.parametrize('path', PATHS, ids=IDS)
@pytest.mark.parametrize('name', ROWS)
def test_every_path_equals_dense_on_named_rows(path, name):
  for other in ('one document', 'documents of two chunks'):
    segment_ids = jnp.array([ROWS[name], ROWS[other]])
    arrays = (*arrays_of(path), segment_ids)
    assert_equal_to(parallel(path)(*arrays), dense()(*arrays))


@settings(deadline=None, max_examples=60)
@given(
  rows=st.lists(packed_row(T), min_size=B, max_size=B),
  path=st.sampled_from(PATHS),
  seed=st.integers(0, 1000),
)
def test_every_path_equals_dense_on_any_packed_rows(rows, path, seed):
  arrays = (*arrays_of(path, seed), jnp.asarray(np.stack(rows)))
  assert_equal_to(parallel(path)(*arrays), dense()(*arrays))


@pytest.mark.parametrize('path', PATHS, ids=IDS)
def test_a_changed_document_changes_no_other(path):
  """Exactly, under every kind (trl issue 6843)."""
  segment_ids = jnp.array([ROWS['packed documents']] * B)
  q, k, v, d_out = arrays_of(path)
  before = parallel(path)(q, k, v, d_out, segment_ids)
  changed = np.asarray(segment_ids[0]) == 3
  q, k, v, d_out = (x.at[:, changed].add(1.0) for x in (q, k, v, d_out))
  after = parallel(path)(q, k, v, d_out, segment_ids)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a[:, ~changed], b[:, ~changed])
    assert np.abs(np.asarray(a - b))[:, changed].max() > 0.1


@pytest.mark.parametrize(
  'kind',
  [
    'ring',
    pytest.param('allgather', marks=pytest.mark.slow),
    pytest.param('ulysses', marks=pytest.mark.slow),
  ],
)
def test_gradients_equal_finite_differences(kind):
  """Against no other gradient of ours."""
  parallel = Path(kind, 'zigzag', (('context', 2),)).parallel()
  segment_ids = jnp.array([[1, 1, 2, 0, 1, 1, 1, 2]])  # 1 1 1 1 1 2 2 0
  attend = functools.partial(
    context_parallel_attention, parallel=parallel, block_len=2
  )
  arrays = random_qkv(6, (1, 8, 2, 1, 2))
  assert_equal_to_finite_differences(attend, arrays, segment_ids)


@pytest.mark.parametrize('path', [PATHS[i] for i in (1, 5, 9)], ids=str)
def test_bfloat16_is_rounded_where_dense_rounds_and_nowhere_else(path):
  """Parts merged in bfloat16 would differ by 2^-9 (ring-flash-attention 42)."""
  segment_ids = jnp.array([ROWS['one document']] * B)
  arrays = (*arrays_of(path, dtype=jnp.bfloat16), segment_ids)
  got = parallel(path)(*arrays)
  assert all(x.dtype == jnp.bfloat16 for x in got)
  # A sum on the border between two bfloat16 numbers may fall to either side.
  assert_equal_to(got, dense()(*arrays), rel=2**-12)


@pytest.mark.parametrize('path', [PATHS[i] for i in (1, 5, 9)], ids=str)
def test_a_remat_policy_can_keep_attention(path):
  """Otherwise the backward pass runs it again, all transfers included."""
  attend, arrays = attend_on(path), arrays_of(path)

  def loops(policy):
    kept = jax.checkpoint(
      lambda *qkv: attend(*(2 * x for x in qkv)), policy=policy
    )
    gradient = jax.grad(lambda *qkv: kept(*qkv).sum(), argnums=(0, 1, 2))
    return primitives(jax.make_jaxpr(gradient)(*arrays[:3]))['while']

  policies = jax.checkpoint_policies
  once = loops(policies.everything_saveable)
  assert loops(policies.save_only_these_names(KEPT)) == once
  assert loops(policies.nothing_saveable) > once


@pytest.mark.parametrize('path', PATHS, ids=IDS)
def test_very_large_scores_do_not_overflow(path):
  """As merging by plain exp(lse) does (EasyContext issue 14)."""
  segment_ids = jnp.array([ROWS['a document over several shards']] * B)
  q, k, v, d_out = arrays_of(path)
  q = q.at[..., 0].set(1.0)
  for size in (1e4, -1e4):
    arrays = (q, k.at[..., 0].set(size * H**0.5), v, d_out, segment_ids)
    got, expected = parallel(path)(*arrays), dense()(*arrays)
    # Scores of 1e4 are float32 multiples of 1e-3, in all paths alike. What that
    # leaves of dq along the large component is rounding alone.
    got[1], expected[1] = got[1][..., 1:], expected[1][..., 1:]
    assert_equal_to(got, expected, rel=1e-2)


@pytest.mark.parametrize('path', PATHS, ids=IDS)
def test_what_documents_rule_out_is_not_touched(path):
  """Keys and values that are not numbers, in a document of its own."""
  if path.layout == 'zigzag' and T // (2 * path.num_shards) % BLOCK_LEN:
    pytest.skip('a block holds ends of two chunks, so it is needed for both')
  segment_ids = jnp.array([row(24, 12, 12, T=T)] * B)
  q, k, v, d_out = arrays_of(path)
  poisoned = np.asarray(segment_ids[0]) == 2
  k, v = (x.at[:, poisoned].set(jnp.nan) for x in (k, v))
  for x in parallel(path)(q, k, v, d_out, segment_ids):
    assert np.isfinite(x[:, ~poisoned]).all()


@pytest.mark.parametrize(
  ('kind', 'layout', 'N', 'K', 'message'),
  [
    ('rings', 'zigzag', 4, 2, "unknown kind 'rings'"),
    ('ring', 'striped', 4, 2, "unknown layout 'striped'"),
    ('ring', 'zigzag', 4, 3, r'num_heads=4 .* num_kv_heads=3'),
    ('ring', 'zigzag', 6, 3, r'num_kv_heads=3 .* 2 shards'),
    ('ulysses', 'zigzag', 12, 6, r'6 heads .* 4 context shards'),
  ],
)
def test_what_does_not_divide_is_refused_with_its_numbers(
  kind, layout, N, K, message
):
  path = Path(kind, layout, (('context', 4), ('tensor', 2)))
  q, k, v, _ = random_qkv(0, (1, 16, N, K, H))
  with pytest.raises(ValueError, match=message):
    context_parallel_attention(q, k, v, parallel=path.parallel())


def test_a_row_that_does_not_divide_is_refused_with_its_numbers():
  path = Path('ring', 'zigzag', (('context', 4),))
  q, k, v, _ = random_qkv(0, (1, 12, 4, 2, H))
  with pytest.raises(ValueError, match=r'12 tokens .* 8 chunks .*zigzag.* 4'):
    context_parallel_attention(q, k, v, parallel=path.parallel())


def test_rows_that_do_not_divide_are_refused_with_their_number():
  path = Path('ring', 'zigzag', (('data', 2), ('context', 4)))
  q, k, v, _ = random_qkv(0, (3, 16, 4, 2, H))
  with pytest.raises(ValueError, match=r'3 rows .* 2 shards'):
    context_parallel_attention(q, k, v, parallel=path.parallel())


def test_a_mesh_of_explicit_axes_is_refused_and_one_of_auto_axes_is_not():
  q, k, v, _ = random_qkv(0, (2, 16, 4, 2, H))
  make = functools.partial(jax.make_mesh, (2, 4), ('data', 'context'))
  explicit = ContextParallel(make())
  with pytest.raises(ValueError, match=r'must be Auto: make it by .*AxisType'):
    context_parallel_attention(q, k, v, parallel=explicit)
  auto = ContextParallel(make(axis_types=(jax.sharding.AxisType.Auto,) * 2))
  attend = functools.partial(context_parallel_attention, parallel=auto)
  assert jax.eval_shape(attend, q, k, v).shape == q.shape


def test_one_shard_takes_rows_of_any_length():
  path = Path('ring', 'zigzag', (('context', 1),))
  q, k, v, _ = random_qkv(0, (1, 7, 4, 2, H))
  out = context_parallel_attention(q, k, v, parallel=path.parallel())
  np.testing.assert_allclose(out, dense_attention(q, k, v), atol=1e-5)
