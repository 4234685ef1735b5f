"""Which token comes next: greedy, or drawn at a temperature from the likeliest.

What top-k and top-p keep is all that is at least as likely as some token, so
equally likely tokens stay or go together, and their order means nothing. That
bound is found without sorting the vocabulary: bit by bit, from the top, in the
integers that order as floats do.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from longctx_jax.array_types import typed
from longctx_jax.config_from_dict import ConfigError, check_at_least

# ours: logits divided by less might not be finite, those divided by more are as
# good as equal.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. Any setting runs in the same compiled program."""

  temperature: float = 0.0  # 0: the likeliest token, always
  top_k: int = 0  # of the k likeliest; 0: of all
  # Of these (renormalised), the fewest that together have this probability.
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature != 0:
      check_at_least(self, MIN_TEMPERATURE, 'temperature')
    check_at_least(self, 0, 'top_k')
    for name, most in (
      ('temperature', MAX_TEMPERATURE),
      ('top_k', 2**31 - 1),  # an int32 on the device
    ):
      if getattr(self, name) > most:
        raise ConfigError(
          f'{name} must be at most {most}, got {getattr(self, name)}'
        )
    if not 0 < self.top_p <= 1:
      raise ConfigError(
        f'top_p must be above 0 and at most 1, got {self.top_p}'
      )


@typed
def sample_tokens(
  logits: Float[Array, 'B V'],
  keys: Key[Array, ' B'],
  *,
  temperature: Float[Array, ''],
  top_k: Int[Array, ''],
  top_p: Float[Array, ''],
) -> Int[Array, ' B']:
  """A token per row, by a key per row; the arguments are `Sampling`'s."""

  def draw():
    scaled = (logits - jnp.max(logits, -1, keepdims=True)) / temperature
    kept = keep_likeliest(scaled, top_k, top_p)
    # The largest of log-probabilities plus Gumbel noise is a draw.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scaled.shape[1:]))(keys)
    return jnp.argmax(jnp.where(kept, scaled + noise, -jnp.inf), axis=-1)

  return jax.lax.cond(
    temperature == 0, lambda: jnp.argmax(logits, axis=-1), draw
  ).astype(jnp.int32)


@typed
def keep_likeliest(
  logits: Float[Array, 'B V'], top_k: Int[Array, ''], top_p: Float[Array, '']
) -> Bool[Array, 'B V']:
  """True for what top-k, and of that top-p, leaves.

  top_k=3, then top_p=0.8:

    probability   0.3   0.1   0.3   0.1   0.2
    top-k          x           x           x      three
    of these      0.375       0.375       0.25
    top-p          x           x           x      0.75 is not enough
  """
  ranks = _ranks(logits)
  everything = jnp.ones_like(logits, bool)

  def by_count():
    ones = jnp.ones_like(logits, jnp.int32)
    return ranks >= _bound(ranks, ones, top_k)

  kept = jax.lax.cond(
    (top_k > 0) & (top_k < logits.shape[1]), by_count, lambda: everything
  )

  def by_mass():
    mass = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    mass = jnp.where(kept, mass, 0)
    enough = top_p * jnp.sum(mass, axis=-1, keepdims=True)
    return kept & (ranks >= _bound(ranks, mass, enough))

  return jax.lax.cond(top_p < 1, by_mass, lambda: kept)


def _ranks(x):
  """uint32 that order as float32 do; -0 is 0."""
  x = jnp.where(x == 0, 0.0, x.astype(jnp.float32))
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  top = jnp.uint32(1 << 31)
  return jnp.where(bits >= top, ~bits, bits | top)


def _bound(ranks, weights, enough):
  """[B, 1]: the largest rank at or above which `weights` sum to `enough`."""

  def set_bit(i, bound):
    higher = bound | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    total = jnp.sum(
      jnp.where(ranks >= higher, weights, 0), axis=-1, keepdims=True
    )
    return jnp.where(total >= enough, higher, bound)

  return jax.lax.fori_loop(
    0, 32, set_bit, jnp.zeros((ranks.shape[0], 1), jnp.uint32)
  )
