"""RoPE against closed forms written out here, and its shift invariance."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from longctx_jax.ops.rope import apply_rope, rope_frequencies

H = 16
EPS = 2.0**-24  # float32 rounds to within this share of a number


def plain_frequencies(base, head_dim=H):
  return np.array([base ** (-2 * i / head_dim) for i in range(head_dim // 2)])


def random(shape, seed, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def rotate64(x, positions, frequencies):
  """The rotation, in float64: pair (i, i + H/2) turns by position * f_i."""
  x = np.asarray(x, np.float64)
  angles = np.asarray(positions, np.float64)[:, :, None, None] * frequencies
  first, second = x[..., : H // 2], x[..., H // 2 :]
  cos, sin = np.cos(angles), np.sin(angles)
  return np.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )


def pair_norms(x):
  x = np.asarray(x, np.float64)
  return np.hypot(x[..., : H // 2], x[..., H // 2 :])


@pytest.mark.parametrize('base', [10_000.0, 8e6, 128e6])
def test_frequencies_without_scaling_are_powers_of_the_base(base):
  frequencies, scale = rope_frequencies(H, base)
  # In float64: times a position, float32 would be a radian off at 2**24.
  np.testing.assert_allclose(frequencies, plain_frequencies(base), rtol=1e-14)
  assert scale == 1.0


def test_linear_scaling_divides_every_frequency_by_the_factor():
  frequencies, scale = rope_frequencies(H, 1e4, scaling='linear', factor=8.0)
  np.testing.assert_allclose(frequencies, plain_frequencies(1e4) / 8, rtol=1e-6)
  assert scale == 1.0


def test_ntk_keeps_the_fastest_and_interpolates_the_slowest_in_full():
  factor = 50.0
  frequencies, scale = rope_frequencies(
    H, 10_000.0, scaling='ntk', factor=factor
  )
  plain = plain_frequencies(10_000.0)
  # f_i shrinks by factor ** (i / (H/2 - 1)): not at all at i = 0, by the whole
  # factor at the last i.
  shrink = np.array([factor ** (i / (H / 2 - 1)) for i in range(H // 2)])
  np.testing.assert_allclose(frequencies, plain / shrink, rtol=1e-6)
  assert scale == 1.0


def test_yarn_equals_the_closed_form_of_its_released_code():
  base, factor, original_len, fast, slow = 10_000.0, 16.0, 4096, 32.0, 1.0
  frequencies, scale = rope_frequencies(
    128, base, scaling='yarn', factor=factor, original_len=original_len
  )
  expected = []
  # Dimension whose wave turns r times within the original length.
  turning = {
    r: 128 * math.log(original_len / (2 * math.pi * r)) / (2 * math.log(base))
    for r in (fast, slow)
  }
  low, high = math.floor(turning[fast]), math.ceil(turning[slow])
  assert 0 < low < high < 64  # all three regimes are there
  for i, f in enumerate(plain_frequencies(base, 128)):
    interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
    expected.append(interpolated * f / factor + (1 - interpolated) * f)
  np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
  assert scale == pytest.approx(0.1 * math.log(16.0) + 1, rel=1e-12)


def test_yarn_attention_factor_multiplies_scores_by_its_square():
  frequencies, scale = rope_frequencies(
    H, 1e4, scaling='yarn', factor=16.0, original_len=256
  )
  x, positions = random((1, 5, 2, H), 0), jnp.arange(5)[None]
  scaled = apply_rope(x, positions, frequencies, scale)
  unscaled = apply_rope(x, positions, frequencies)
  np.testing.assert_allclose(
    np.einsum('BTNH,BTNH->BTN', scaled, scaled),
    np.einsum('BTNH,BTNH->BTN', unscaled, unscaled) * scale**2,
    rtol=1e-5,
  )


def test_llama3_keeps_short_waves_and_interpolates_long_ones():
  base, factor, original_len, low, high = 500_000.0, 8.0, 8192, 1.0, 4.0
  frequencies, scale = rope_frequencies(
    128,
    base,
    scaling='llama3',
    factor=factor,
    original_len=original_len,
    low_freq_factor=low,
    high_freq_factor=high,
  )
  expected, regimes = [], set()
  for f in plain_frequencies(base, 128):
    wavelength = 2 * math.pi / f
    if wavelength < original_len / high:
      regimes.add('kept')
      expected.append(f)
    elif wavelength > original_len / low:
      regimes.add('interpolated')
      expected.append(f / factor)
    else:
      regimes.add('between')
      smooth = (original_len / wavelength - low) / (high - low)
      expected.append((1 - smooth) * f / factor + smooth * f)
  assert len(regimes) == 3
  np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
  assert scale == 1.0


@given(
  base=st.floats(1e3, 1e8),
  raised=st.floats(1.5, 100.0),
  scaling=st.sampled_from(['none', 'linear', 'ntk', 'yarn', 'llama3']),
)
def test_raising_the_base_lowers_all_frequencies_but_the_first(
  base, raised, scaling
):
  more = {'scaling': scaling, 'factor': 4.0, 'original_len': 4096}
  before, _ = rope_frequencies(H, base, **more)
  after, _ = rope_frequencies(H, base * raised, **more)
  assert after[0] == before[0]
  assert (after[1:] < before[1:]).all()


@pytest.mark.parametrize('start', [0, 100_000, 500_000, 2**24 - 64])
def test_rotation_equals_float64_to_a_few_roundings_anywhere(start):
  frequencies, _ = rope_frequencies(H, 8e6)
  x = random((2, 32, 2, H), 1)
  positions = start + jnp.arange(64).reshape(2, 32)
  rotate = jax.jit(functools.partial(apply_rope, frequencies=frequencies))
  rotated = rotate(x, positions)
  error = np.abs(rotated - rotate64(x, positions, np.float64(frequencies)))
  # An angle of at most half a turn, its factor, cos, sin, products and sum are
  # rounded by EPS each; near 500,000 a plain product would be 2**19 EPS off.
  bound = pair_norms(x) * 24 * EPS
  assert (error <= np.concatenate([bound, bound], axis=-1)).all()


@settings(deadline=None, max_examples=40)
@given(
  first=st.integers(0, 2000),
  second=st.integers(0, 2000),
  shift=st.one_of(st.integers(0, 5000), st.integers(495_000, 16_000_000)),
  base=st.sampled_from([10_000.0, 8e6, 128e6]),
  seed=st.integers(0, 100),
)
def test_scores_do_not_change_when_all_positions_shift(
  first, second, shift, base, seed
):
  frequencies, _ = rope_frequencies(H, base)
  q, k = random((2, 1, 1, 1, H), seed)

  def score(offset):
    at = [jnp.full((1, 1), p + offset) for p in (first, second)]
    a = apply_rope(q, at[0], frequencies)
    b = apply_rope(k, at[1], frequencies)
    return float(np.sum(np.float64(a) * np.float64(b)))

  # A pair's share of the score moves by at most |q_i| |k_i| times the error of
  # its four angles, however large the shift.
  pairs = (pair_norms(q) * pair_norms(k)).reshape(-1)
  assert abs(score(shift) - score(0)) <= float(pairs.sum()) * 96 * EPS


def test_rotation_preserves_the_norm_of_every_pair():
  frequencies, _ = rope_frequencies(H, 8e6)
  x = random((2, 9, 3, H), 2)
  positions = jnp.array([[0, 1, 7, 500, 4096, 65_536, 200_000, 500_000, 3]] * 2)
  rotated = apply_rope(x, positions, frequencies)
  np.testing.assert_allclose(pair_norms(rotated), pair_norms(x), rtol=1e-5)
  # What is preserved is not the vector itself.
  assert np.abs(rotated[:, 1:] - x[:, 1:]).max() > 0.1
  np.testing.assert_array_equal(rotated[:, 0], x[:, 0])  # position 0


def test_bfloat16_input_is_rotated_in_float32():
  frequencies = rope_frequencies(H, 8e6)[0]
  x = random((1, 64, 2, H), 3, jnp.bfloat16)
  # bfloat16 cannot tell these positions from 500,224.
  positions = 500_000 + jnp.arange(64)[None]
  rotated = apply_rope(x, positions, frequencies)
  in_float32 = apply_rope(x.astype(jnp.float32), positions, frequencies)
  assert rotated.dtype == jnp.bfloat16
  # Rounded to bfloat16 once, at the end.
  np.testing.assert_array_equal(
    np.asarray(rotated, np.float32),
    np.asarray(in_float32.astype(jnp.bfloat16), np.float32),
  )


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    ({'head_dim': 15}, 'even for RoPE, got 15'),
    ({'head_dim': 2, 'scaling': 'ntk'}, "'ntk' .* head_dim=2 has only one"),
    ({'scaling': 'dynamic'}, "'dynamic' is not one of"),
    (
      {'scaling': 'yarn', 'factor': 4.0},
      "'yarn' needs original_len > 0, got 0",
    ),
    ({'scaling': 'llama3', 'original_len': -5}, 'original_len > 0, got -5'),
  ],
)
def test_errors_name_the_numbers(arguments, says):
  with pytest.raises(ValueError, match=says):
    rope_frequencies(**{'head_dim': H, 'base': 1e4, **arguments})


def test_frequencies_of_another_head_width_are_refused():
  frequencies = rope_frequencies(2 * H, 1e4)[0]
  with pytest.raises(TypeCheckError):
    apply_rope(random((1, 3, 1, H), 0), jnp.zeros((1, 3), int), frequencies)
