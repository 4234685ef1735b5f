"""Rotary position embedding with a configurable base and scaling.

RoPE: arXiv:2104.09864. The rotation is float32 whatever the inputs: bfloat16
rounds position 257 to 256, and breaks the shift invariance that long contexts
rely on (AnchorAttention, arXiv:2411.13476, sec. 3). Float32 does the same to
position * frequency, only later: near 500,000 it is off by up to 0.016 radians.
So angles are kept as turns, in fixed point, where whole turns drop out of an
integer product by overflow and nothing is lost at any position.

Halves are rotated against each other (Hugging Face layout), not even/odd pairs.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from longctx_jax.array_types import typed

SCALINGS = ('none', 'linear', 'ntk', 'yarn', 'llama3')


def rope_frequencies(
  head_dim: int,
  base: float,
  *,
  scaling: str = 'none',
  factor: float = 1.0,
  original_len: int = 0,
  beta_fast: float = 32.0,
  beta_slow: float = 1.0,
  low_freq_factor: float = 1.0,
  high_freq_factor: float = 4.0,
) -> tuple[np.ndarray, float]:
  """Angular frequencies in radians per token, and a scale for cos and sin.

  Args:
    head_dim: H, even.
    base: RoPE base (theta); frequency i is `base ** (-2i / H)`.
    scaling: how to stretch a context of `original_len` by `factor`.
      `linear`: position interpolation, every frequency / factor
      (arXiv:2306.15595). `ntk`: base * factor ** (H / (H - 2)), so that the
      lowest frequency alone is interpolated in full ("NTK-aware"; this is the
      base change of LongSkywork, arXiv:2406.00605). `yarn`: between the two by
      wavelength, with a softmax temperature (arXiv:2309.00071; the ramp over
      dimensions is that of its released code). `llama3`: Llama 3.1's ramp over
      wavelengths (arXiv:2407.21783).
    factor: how many times longer the context becomes.
    original_len: the context length before stretching (yarn, llama3).
    beta_fast: yarn: dimensions that turn more often than this within
      `original_len` keep their frequency.
    beta_slow: yarn: dimensions that turn less often are interpolated in full.
    low_freq_factor: llama3: wavelengths above original_len / this are
      interpolated in full.
    high_freq_factor: llama3: wavelengths below original_len / this are kept.

  Returns:
    float64 [H / 2] frequencies, and the factor on cos and sin (1 but for yarn).
  """
  if head_dim % 2:
    raise ValueError(f'head_dim must be even for RoPE, got {head_dim}')
  if scaling not in SCALINGS:
    raise ValueError(f'rope scaling {scaling!r} is not one of {SCALINGS}')
  if scaling in ('yarn', 'llama3') and original_len <= 0:
    raise ValueError(
      f'rope scaling {scaling!r} needs original_len > 0, got {original_len}'
    )
  if scaling == 'ntk' and head_dim == 2:
    raise ValueError(
      "rope scaling 'ntk' keeps the fastest frequency and interpolates the"
      ' slowest, but head_dim=2 has only one: use linear'
    )
  if scaling == 'ntk':
    base = base * factor ** (head_dim / (head_dim - 2))
  exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  frequencies = base**-exponents
  scale = 1.0
  if scaling == 'linear':
    frequencies = frequencies / factor
  elif scaling == 'yarn':
    keep = _yarn_keep(head_dim, base, original_len, beta_fast, beta_slow)
    frequencies = frequencies * (keep + (1 - keep) / factor)
    scale = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
  elif scaling == 'llama3':
    turns = original_len * frequencies / (2 * math.pi)
    span = high_freq_factor - low_freq_factor
    keep = np.clip((turns - low_freq_factor) / span, 0, 1)
    frequencies = frequencies * (keep + (1 - keep) / factor)
  return frequencies, scale


def _yarn_keep(head_dim, base, original_len, beta_fast, beta_slow):
  """Share of each frequency that YaRN leaves as it is: 1 for fast ones."""

  def dimension(turns):
    wavelength = original_len / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(base))

  low = max(math.floor(dimension(beta_fast)), 0)
  high = min(math.ceil(dimension(beta_slow)), head_dim - 1)
  width = max(high - low, 1e-3)
  return 1 - np.clip((np.arange(head_dim // 2) - low) / width, 0, 1)


@typed
def apply_rope(
  x: Float[Array, 'B T N H'],
  positions: Int[Array, 'B T'],
  frequencies: Float64[np.ndarray, 'H/2'],
  scale: float = 1.0,
) -> Float[Array, 'B T N H']:
  """Rotates each head by its position; float32 inside, dtype of x outside."""
  angles = _angles(positions, frequencies)[:, :, None]
  cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def _angles(positions, frequencies):
  """position * frequency - 2 pi n, float32 [B, T, H / 2], for some whole n.

  A frequency is a whole number of 2**-32 turns, and a rest below one half.
  Times the position, the former wraps around as turns do; the latter stays
  small.
  """
  per_token = frequencies / (2 * math.pi) * 2.0**32
  whole = np.round(per_token)
  rest = np.float32(per_token - whole)
  product = (
    positions.astype(jnp.uint32)[..., None]
    * jnp.asarray((whole % 2.0**32).astype(np.uint32))[None, None]
  )
  # As signed, from half a turn back to half a turn on.
  near = jax.lax.bitcast_convert_type(product, jnp.int32).astype(jnp.float32)
  far = positions.astype(jnp.float32)[..., None] * rest[None, None]
  return (near + far) * np.float32(2 * math.pi / 2.0**32)
