"""Prefill and decoding on the device, in programs that are compiled once.

What a program depends on is the model and sizes: the rows, the length of the
cache, of a chunk, and how many tokens are drawn per call. All else, such as
how tokens are drawn and where rows end, is an argument. Sizes come in buckets.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from longctx_jax.cached_model import Cache, CachedModel
from longctx_jax.sampling import sample_tokens
from longctx_jax.sharding import BATCH_SPEC

MIN_CHUNK_LEN = 64  # ours: reading 64 tokens costs little more than one
NO_TOKEN = -1
# XLA halves the registers of CPUs that have wide ones, which some run slower.
# ours: the exponentials of a prefill take a third less time with all of them.
_OPTIONS = {'cpu': {'xla_cpu_prefer_vector_width': 512}}


class Draw(NamedTuple):
  """All that decides which tokens are drawn, and when a row has ended."""

  key: Any
  temperature: Any
  top_k: Any
  top_p: Any
  num_drawn: Any  # the tokenizer's; embeddings may be padded beyond
  stop_ids: Any  # NO_TOKEN in places left over

  def tokens(self, logits, step):
    """[B] tokens of this step."""
    B, V = logits.shape
    known = jnp.arange(V) < self.num_drawn
    logits = jnp.where(known[None], logits, -jnp.inf)
    of_row = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = of_row(jax.random.fold_in(self.key, step), jnp.arange(B))
    return sample_tokens(
      logits,
      keys,
      temperature=self.temperature,
      top_k=self.top_k,
      top_p=self.top_p,
    )


class Programs(NamedTuple):
  """The compiled functions of a model; see those of the same names, below."""

  fill_chunk: Callable[..., Cache]
  read_chunk: Callable[..., tuple[Array, Cache]]
  first_tokens: Callable[..., Array]
  next_tokens: Callable[..., tuple[Array, Cache]]


@functools.cache
def programs(model: CachedModel, num_steps: int) -> Programs:
  """Equal models share what is compiled for one.

  It is said where all results lie, because XLA would say it in other words
  than were used for the arguments, and then the next call be compiled anew.
  """
  rows = NamedSharding(model.mesh, P(BATCH_SPEC[0]))
  everywhere = NamedSharding(model.mesh, P())
  cache = model.cache_shardings()
  platform = model.mesh.devices.flat[0].platform
  jit = functools.partial(jax.jit, compiler_options=_OPTIONS.get(platform))
  return Programs(
    jit(
      functools.partial(_fill_chunk, model),
      donate_argnums=1,
      out_shardings=cache,
    ),
    jit(
      functools.partial(_read_chunk, model),
      donate_argnums=(1, 2),
      out_shardings=(rows, cache),
    ),
    jit(functools.partial(_first_tokens, model), out_shardings=everywhere),
    jit(
      functools.partial(_next_tokens, model, num_steps),
      donate_argnums=1,
      out_shardings=(everywhere, cache),
    ),
  )


def _fill_chunk(model, params, cache, tokens, start):
  """Reads a chunk in which no row ends: of the last layer, keys and values.

  Nobody asks what else it says, so XLA leaves it out.
  """
  return model.read_chunk(params, cache, tokens, start)[1]


def _read_chunk(model, params, cache, x, tokens, start, last):
  """Reads a chunk; x [B, D] becomes that of rows whose last token is in it."""
  C = tokens.shape[1]
  states, cache = model.read_chunk(params, cache, tokens, start)
  place = jnp.clip(last - start, 0, C - 1)
  found = jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]
  is_here = (last >= start) & (last < start + C)
  return jnp.where(is_here[:, None], found, x), cache


def _first_tokens(model, params, x, draw):
  """Tokens [B] that follow the final hidden states [B, D] of prompts."""
  return draw.tokens(model.logits(params, x), jnp.int32(0))


def _next_tokens(
  model,
  num_steps,
  params,
  cache,
  tokens,
  index,
  done,
  step,
  stop_step,
  draw,
):
  """Tokens [B, num_steps] of the next steps, and the cache.

  `tokens` were drawn last and stand at `index`. It ends when all rows are done
  or `stop_step` is reached; what was not drawn is NO_TOKEN.
  """

  def go_on(state):
    i, _, _, done, _ = state
    return (i < num_steps) & (step + i < stop_step) & ~jnp.all(done)

  def draw_one(state):
    i, cache, tokens, done, emitted = state
    x, cache = model.read_token(params, cache, tokens, index + i)
    tokens = draw.tokens(model.logits(params, x), step + i)
    emitted = emitted.at[:, i].set(jnp.where(done, NO_TOKEN, tokens))
    ended = (tokens[:, None] == draw.stop_ids[None]).any(axis=1)
    return i + 1, cache, tokens, done | ended, emitted

  emitted = jnp.full((tokens.shape[0], num_steps), NO_TOKEN, jnp.int32)
  state = jnp.int32(0), cache, tokens, done, emitted
  _, cache, _, _, emitted = jax.lax.while_loop(go_on, draw_one, state)
  return emitted, cache


def chunk_lens(chunk_len: int, num_shards: int) -> tuple[int, ...]:
  """The lengths that a chunk may have, each twice the one before.

  All are multiples of the shards; the last is the first that is not below
  `chunk_len`.
  """
  lengths = [-(-MIN_CHUNK_LEN // num_shards) * num_shards]
  while lengths[-1] < chunk_len:
    lengths.append(2 * lengths[-1])
  return tuple(lengths)


def chunks_of(T: int, lengths: tuple[int, ...]) -> Iterator[int]:
  """Chunks for T tokens: the longest ones, then the shortest that is enough."""
  while lengths[-1] < T:
    yield lengths[-1]
    T -= lengths[-1]
  yield next(length for length in lengths if length >= T)


def bucket(size: int, multiple: int) -> int:
  """The next size that something is compiled for: eight for each doubling.

  So at most one eighth is in vain, beyond the next `multiple`.
  """
  unit = max(1 << max(size.bit_length() - 4, 0), 1)
  size += -size % unit
  return size + -size % multiple
