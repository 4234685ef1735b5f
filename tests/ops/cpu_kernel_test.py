"""The C++ kernel against dense attention, and how it is compiled and kept."""

import functools
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import Place, dense_attention
from longctx_jax.ops.blockwise_attention import blockwise_attention
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.kernels import cpu
from longctx_jax.ops.sequence_layout import from_layout, to_layout
from tests.ops.attention_inputs import (
  assert_equal_to,
  assert_equal_to_finite_differences,
  packed_row,
  random_qkv,
  row,
  with_gradients,
)
from tests.ops.cpp_library import needs_library
from tests.ops.row_parts import (
  LAYOUTS,
  SHARDS,
  B,
  S,
  T,
  assert_equal_to_dense,
  inputs,
  places,
)

ROOT = Path(__file__).parent.parent.parent
attend = functools.partial(blockwise_attention, kernel=cpu.CPP)


@jax.jit
def run(q, k, v, d_out, queries, keys):
  """(q, k, v, d_out, queries, keys) -> out, dq, dk, dv and lse."""
  out, lse = cpu.forward(q, k, v, queries, keys)
  delta = blockwise.row_delta(out, d_out)
  grads = cpu.backward(q, k, v, d_out, lse, delta, queries, keys)
  return out, *grads, lse


@needs_library
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shards', SHARDS)
def test_equals_dense_attention(shards, layout):
  where = places(shards, layout, 'documents and padding')
  assert_equal_to_dense(run, inputs(), where)


# Features: fewer than a register's lanes, or ones that leave 1, 2 or 4 vectors
# over; tokens: fewer than a tile, a whole number of tiles, one more.
@needs_library
@pytest.mark.parametrize('heads', [(3, 1), (4, 4), (6, 2)])
@pytest.mark.parametrize(
  ('length', 'H'), [(5, 16), (64, 48), (65, 80), (200, 128), (128, 20)]
)
def test_equals_dense_at_every_size(length, H, heads):
  q, k, v, d_out = random_qkv(0, (2, length, *heads, H))
  segment_ids = np.stack(
    [row(length, T=length), row(length // 3, length // 2, T=length)]
  )
  arrays = (q, k, v, d_out, jnp.asarray(segment_ids))
  expected = with_gradients(dense_attention)(*arrays)
  assert_equal_to(with_gradients(attend)(*arrays), expected)


@needs_library
@pytest.mark.parametrize('between', [0, 2])
def test_what_lies_between_keys_of_a_document_is_left_out(between):
  """Padding or another segment inside a block that all queries come after."""
  ids = np.ones((2, 128), np.int32)
  ids[:, 20:40] = between
  kernel, dense = both()
  arrays = (*random_qkv(4, (2, 128, 4, 2, 16)), jnp.asarray(ids))
  assert_equal_to(kernel(*arrays), dense(*arrays))


@needs_library
def test_blocks_passed_over_together_are_passed_over_rightly():
  """64 blocks at a time: the second document begins with the next 64."""
  arrays = (
    *random_qkv(9, (1, 4200, 1, 1, 16)),
    jnp.asarray(row(4096, 104, T=4200)[None]),
  )
  kernel, dense = both()
  assert_equal_to(kernel(*arrays), dense(*arrays))


@functools.cache
def both():
  return with_gradients(attend), with_gradients(dense_attention)


@needs_library
@given(rows=st.lists(packed_row(150), min_size=2, max_size=2))
def test_equals_dense_on_any_packed_rows(rows):
  kernel, dense = both()
  arrays = (*random_qkv(1, (2, 150, 4, 2, 16)), jnp.asarray(np.stack(rows)))
  assert_equal_to(kernel(*arrays), dense(*arrays))


@needs_library
@pytest.mark.parametrize('layout', ['contiguous', 'zigzag'])
@pytest.mark.parametrize('kind', ['ring', 'allgather', 'ulysses'])
def test_equals_dense_on_shards(kind, layout):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('context',))
  on_mesh = functools.partial(
    context_parallel_attention,
    parallel=ContextParallel(mesh, kind, layout),
    kernel=cpu.CPP,
  )
  length = 600
  rows = row(100, 320, 1, 110, T=length), row(length, T=length)
  arrays = (
    *random_qkv(2, (2, length, 4, 2, 16)),
    jnp.asarray(np.stack(rows)),
  )
  stored = [to_layout(x, layout, 4) for x in arrays]
  got = [from_layout(x, layout, 4) for x in with_gradients(on_mesh)(*stored)]
  assert_equal_to(got, with_gradients(dense_attention)(*arrays))


@needs_library
def test_gradients_equal_finite_differences():
  segment_ids = jnp.array([[1, 1, 1, 2, 0]])
  arrays = random_qkv(6, (1, 5, 2, 1, 2))
  assert_equal_to_finite_differences(attend, arrays, segment_ids)


@needs_library
def test_a_changed_document_changes_no_other():
  """Exactly: not one bit changes where nothing may be seen."""
  kernel, _ = both()
  segment_ids = jnp.asarray(np.stack([row(40, 70, 30, T=150)] * 2))
  q, k, v, d_out = random_qkv(3, (2, 150, 4, 2, 16))
  before = kernel(q, k, v, d_out, segment_ids)
  changed = np.asarray(segment_ids[0]) == 2
  other = [x.at[:, changed].add(3.0) for x in (q, k, v, d_out)]
  after = kernel(*other, segment_ids)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a[:, ~changed], b[:, ~changed])
    assert np.abs(np.asarray(a - b))[:, changed].max() > 0.1


@needs_library
def test_padding_gives_exactly_zeros_and_zero_gradients():
  where = places('any order', 'padding inside and first', 'all padding')
  out, dq, dk, dv, lse = run(*inputs(), *where)
  query_padding, key_padding = (np.asarray(x.segment_ids) == 0 for x in where)
  for array, padding in (
    (out, query_padding),
    (dq, query_padding),
    (dk, key_padding),
    (dv, key_padding),
  ):
    assert (np.asarray(array)[padding] == 0).all()
    assert np.abs(np.asarray(array)[~padding]).max() > 0.1
  assert (np.asarray(lse)[query_padding] == blockwise.MASKED).all()


@needs_library
def test_blocks_that_no_tile_needs_are_not_read():
  """A NaN that is multiplied, even with 0, or compared would be seen."""
  # Query blocks of documents 1 and 2, keys of 0, 1 and 3; and the other way.
  ids = [1] * 128 + [2] * 128 + [0] * 44, [3] * 128 + [1] * 128 + [0] * 144
  queries, keys = (
    Place(jnp.array([x] * B), jnp.arange(len(x)) + start)
    for x, start in zip(ids, (256, 0), strict=True)
  )
  q, k, v, d_out = inputs()
  clean = run(q, k, v, d_out, queries, keys)
  unseen_keys, unseen_queries = np.r_[0:128, 256:S], np.r_[128:T]
  k, v = (x.at[:, unseen_keys].set(jnp.nan) for x in (k, v))
  q = q.at[:, unseen_queries].set(jnp.nan)
  # Not d_out: its row sums with `out` are no matter of tiles.
  got = run(q, k, v, d_out, queries, keys)
  assert np.abs(clean[0][:, :128]).max() > 0.1
  for a, b in zip(got, clean, strict=True):
    np.testing.assert_array_equal(a, b)


@needs_library
@pytest.mark.parametrize('size', [1e4, -1e4])
def test_very_large_scores_do_not_overflow(size):
  kernel, dense = both()
  q, k, v, d_out = random_qkv(5, (2, 150, 4, 2, 16))
  # Scores around size, apart from each other by a few units.
  q, k = q.at[..., 0].set(1.0), k.at[..., 0].set(size * 4.0)
  arrays = (q, k, v, d_out, jnp.asarray(np.stack([row(60, 70, T=150)] * 2)))
  got, expected = list(kernel(*arrays)), list(dense(*arrays))
  # Scores of 1e4 are float32 multiples of 1e-3, in both alike. What that leaves
  # of dq along the large component is rounding alone.
  got[1], expected[1] = got[1][..., 1:], expected[1][..., 1:]
  assert_equal_to(got, expected, rel=1e-2)


@needs_library
def test_bfloat16_inputs_are_not_rounded_again():
  kernel, dense = both()
  segment_ids = jnp.asarray(np.stack([row(60, 70, T=150)] * 2))
  arrays = random_qkv(7, (2, 150, 4, 2, 16), jnp.bfloat16)
  exact = dense(*(x.astype(jnp.float32) for x in arrays), segment_ids)
  got = kernel(*arrays, segment_ids)
  assert all(x.dtype == jnp.bfloat16 for x in got)
  # Rounded once, at the end: by 2^-9 at most.
  assert_equal_to(got, exact, rel=2**-9)


@needs_library
def test_the_same_inputs_give_the_same_bits():
  """However the threads happen to share the work, and in how many parts."""
  arrays = (
    *random_qkv(8, (1, 700, 6, 3, 16)),
    jnp.asarray(row(700, T=700)[None]),
  )
  kernel = with_gradients(attend)
  first = kernel(*arrays)
  for _ in range(20):
    for a, b in zip(kernel(*arrays), first, strict=True):
      np.testing.assert_array_equal(a, b)


@needs_library
@pytest.mark.parametrize('cores', [1, 2, 7, 64])
def test_few_heads_are_cut_into_parts_that_add_up(monkeypatch, cores):
  monkeypatch.setattr(cpu, '_count_cores', lambda: cores)
  parts = cpu._parts(3)
  assert 3 * parts % cores == 0 or 3 * parts >= 4 * cores
  # No fewer would do.
  assert all(3 * p % cores and 3 * p < 4 * cores for p in range(1, parts))
  where = places('any order', 'documents and padding', 'one document')
  fresh = jax.jit(lambda *args: run.__wrapped__(*args))
  assert_equal_to_dense(fresh, inputs(N=2), where)


@needs_library
def test_memory_is_linear_in_the_length():
  """Four times as long a row takes four times the memory, not sixteen."""

  def temporary_bytes(length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lowered = with_gradients(attend).lower(*[shape] * 4, ids)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(8192) < 5 * temporary_bytes(2048)


# How it is compiled ----------------------------------------------------------

TELL = (
  'from longctx_jax.ops.kernels.cpp_library import why_unavailable as why;'
  'print(why())'
)


def in_a_process(cache, command, **env):
  env = {**os.environ, 'XDG_CACHE_HOME': str(cache), **env}
  return subprocess.run(
    [sys.executable, *command],
    env=env,
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=False,
  )


def compiler(directory, script):
  path = directory / 'compiler'
  path.write_text(f'#!/bin/sh\n{script}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return str(path)


def test_without_a_compiler_it_says_so_and_xla_attends(tmp_path):
  told = in_a_process(tmp_path, ['-c', TELL], PATH='/nowhere', CXX='')
  assert told.stdout == 'finds no C++ compiler (c++, g++, clang++)\n'
  told = in_a_process(tmp_path, ['-c', TELL], CXX='/nowhere/cxx')
  assert told.stdout == 'finds no C++ compiler (CXX=/nowhere/cxx)\n'


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path):
  says = 'echo In x.cc: >&2; echo "x.cc:1: error: too old" >&2'
  cxx = compiler(tmp_path, f'{says}; exit 3')
  told = in_a_process(tmp_path, ['-c', TELL], CXX=cxx)
  says = f'cannot compile it by {cxx} (x.cc:1: error: too old)\n'
  assert told.stdout == says
  assert list((tmp_path / 'longctx_jax').iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'longctx_jax').write_text('a file')
  cxx = compiler(tmp_path, 'exit 0')
  told = in_a_process(tmp_path, ['-c', TELL], CXX=cxx)
  assert f'cannot write {tmp_path}/longctx_jax/attention_' in told.stdout


def test_what_is_no_library_is_named(tmp_path):
  cxx = compiler(
    tmp_path, 'for last; do true; done; echo damaged > "$last"; exit 0'
  )
  told = in_a_process(tmp_path, ['-c', TELL], CXX=cxx)
  assert f'cannot load {tmp_path}/longctx_jax/attention_' in told.stdout
  assert 'delete it to compile it again' in told.stdout


@needs_library
def test_it_is_compiled_once(tmp_path):
  log = tmp_path / 'calls'
  cxx = compiler(tmp_path, f'echo >> {log}; exec c++ "$@"')
  for _ in range(2):
    told = in_a_process(tmp_path, ['-c', TELL], CXX=cxx)
    assert told.stdout == '\n', told
  assert len(log.read_text()) == 1


@needs_library
@pytest.mark.slow
@pytest.mark.skipif(
  platform.machine() != 'x86_64', reason='the flags are of x86-64'
)
@pytest.mark.parametrize('flag', ['-mno-avx512f', '-mno-avx'])
def test_cpus_with_fewer_registers_pass_the_same_tests(tmp_path, flag):
  cxx = compiler(tmp_path, f'exec c++ "$@" {flag}')
  tests = ['-m', 'pytest', '-p', 'no:cacheprovider', __file__]
  done = in_a_process(tmp_path, [*tests, '-k', 'equal'], CXX=cxx)
  assert done.returncode == 0, done.stdout
  assert ' passed' in done.stdout
  assert 'skipped' not in done.stdout
