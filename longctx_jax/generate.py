"""Prompts in, continuations out, as they come.

A prompt is read in chunks; then tokens are drawn one by one, many per call to
the device. A row's random numbers depend on the seed, its index among the
prompts and the step, not on what else is in its batch.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax import sharding
from longctx_jax.cached_model import CachedModel, layers_apart
from longctx_jax.config import MeshConfig, ModelConfig, RopeConfig
from longctx_jax.data.tokenizer import Tokenizer
from longctx_jax.decode_loop import (
  NO_TOKEN,
  Draw,
  bucket,
  chunk_lens,
  chunks_of,
  programs,
)
from longctx_jax.sampling import Sampling
from longctx_jax.text_stream import TextStream

GREEDY = Sampling()
# What int32 and the seeds of jax.random hold.
MAX_TOKENS, MAX_SEED = 2**31 - 1, 2**63 - 1

_logger = logging.getLogger(__name__)


class PromptError(ValueError):
  """A prompt that cannot be continued; the message names it and says why."""


class Piece(NamedTuple):
  """What came of one row in one call to the device."""

  row: int  # index among the prompts
  tokens: np.ndarray
  text: str  # '' without a tokenizer
  # Why there is no more; '' while there may be.
  stopped_by: Literal['', 'length', 'token', 'string']


class Generated(NamedTuple):
  """A whole continuation; what stopped it is no part of it.

  Of the token that completes a stop string the text may have a part, so that
  token and what it needed before are among the tokens.
  """

  tokens: np.ndarray  # [new tokens] int32
  text: str
  stopped_by: Literal['length', 'token', 'string']


class Generator:
  """A model's parameters, ready to continue prompts.

  Args:
    config: the model's.
    rope: base and scaling; another than it was trained with extends it.
    params: the Transformer's, or its layers apart as `layers_apart` has them.
    mesh: axes as `sharding.make_mesh` makes them; None is one device.
    tokenizer: for text and stop strings; without one there are tokens only.
    max_len: longest prompt with its continuation; None: no bound but memory.
    chunk_len: tokens of a prompt that are read at a time, about.
    steps_per_call: tokens that are drawn per call to the device.

  Raises:
    ConfigError: a size of the model does not divide over the mesh.
    PromptError: the tokenizer has more tokens than the model.
  """

  def __init__(
    self,
    config: ModelConfig,
    rope: RopeConfig,
    params: Any,
    mesh: Mesh | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    max_len: int | None = None,
    chunk_len: int = 512,
    steps_per_call: int = 16,
  ):
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
      raise PromptError(
        f'the tokenizer has ids up to {tokenizer.vocab_size - 1}, and the model'
        f' only {config.vocab_size} tokens: this is not its tokenizer'
      )
    if mesh is None:
      mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    sharding.check_model_divides(config, mesh)
    self._model = CachedModel(config, rope, mesh)
    choice = self._model.prompt_kernel()
    _logger.info('prompts: kernel %r (%s)', choice.name, choice.reason)
    if 'layers' not in params:
      params = layers_apart(params, config, mesh)
    self._params = params
    self._tokenizer, self._max_len = tokenizer, max_len
    self._num_drawn = (tokenizer or config).vocab_size
    self._chunk_lens = chunk_lens(chunk_len, mesh.shape['context'])
    self._programs = programs(self._model, steps_per_call)

  def generate(
    self, prompts: Sequence[np.ndarray], **how: Any
  ) -> list[Generated]:
    """The continuation of each prompt; arguments as of `stream`."""
    tokens = [[] for _ in prompts]
    texts, stopped_by = [''] * len(prompts), [''] * len(prompts)
    for piece in self.stream(prompts, **how):
      tokens[piece.row].extend(piece.tokens.tolist())
      texts[piece.row] += piece.text
      stopped_by[piece.row] = piece.stopped_by
    return [
      Generated(np.array(ids, np.int32), *rest)
      for ids, *rest in zip(tokens, texts, stopped_by, strict=True)
    ]

  def stream(
    self,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
  ) -> Iterator[Piece]:
    """Continues all prompts at once; each row's pieces come in order.

    Args:
      prompts: token ids, at least one each; they may differ in length.
      max_new_tokens: at least 1.
      sampling: how tokens are drawn.
      seed: of the draws; the same gives the same.
      stop_ids: a row ends at any of these tokens.
      stop_strings: a row's text ends before any of these.

    Raises:
      PromptError: a prompt is empty, has no such token or is too long, stop
        strings come without a tokenizer, or a number is out of range.
    """
    self._check(prompts, max_new_tokens, seed, stop_strings)
    return self._stream(
      prompts, max_new_tokens, sampling, seed, stop_ids, stop_strings
    )

  def _stream(self, prompts, max_new, sampling, seed, stop_ids, stop_strings):
    rows = [
      _Row(self._tokenizer, prompt, stop_strings, set(stop_ids), max_new)
      for prompt in prompts
    ]
    draw = self._draw(sampling, seed, stop_ids)
    cache, tokens = self._read(prompts, max_new, draw)
    emitted = tokens[:, None]
    done = np.ones(len(tokens), bool)
    index = np.ones(len(tokens), np.int32)
    index[: len(prompts)] = [len(prompt) for prompt in prompts]
    step = 1
    while True:
      for i, row in enumerate(rows):
        if not row.stopped_by:
          yield Piece(i, *row.add(emitted[i]), row.stopped_by)
        done[i] = bool(row.stopped_by)
      if done.all():
        return
      emitted, cache = self._programs.next_tokens(
        self._params,
        cache,
        self._on_rows(tokens),
        self._on_rows(index),
        self._on_rows(done),
        np.int32(step),
        np.int32(max_new),
        draw,
      )
      emitted = np.asarray(emitted)
      num_steps = int((emitted != NO_TOKEN).any(axis=0).sum())
      tokens, index = emitted[:, num_steps - 1], index + num_steps
      step += num_steps

  def _read(self, prompts, max_new, draw):
    """The filled cache, and each row's first new token."""
    lengths = [len(prompt) for prompt in prompts]
    chunks = list(chunks_of(max(lengths), self._chunk_lens))
    padded_len = sum(chunks)
    B = self._batch_size(len(prompts))
    S = bucket(
      max(padded_len, max(lengths) + max_new), multiple=self._chunk_lens[0]
    )
    tokens = np.zeros((B, padded_len), np.int32)
    last = np.zeros(B, np.int32)
    for i, prompt in enumerate(prompts):
      tokens[i, : len(prompt)] = prompt
      last[i] = len(prompt) - 1
    cache = self._model.make_cache(B, S)
    D, dtype = self._model.config.embed_dim, self._model.config.compute_dtype
    x = self._on_rows(np.zeros((B, D), dtype))
    start = 0
    for C in chunks:
      chunk = self._on_rows(tokens[:, start : start + C]), np.int32(start)
      start += C
      if any(start - C < length <= start for length in lengths):
        x, cache = self._programs.read_chunk(
          self._params, cache, x, *chunk, self._on_rows(last)
        )
      else:
        cache = self._programs.fill_chunk(self._params, cache, *chunk)
    return cache, np.asarray(self._programs.first_tokens(self._params, x, draw))

  def _draw(self, sampling, seed, stop_ids):
    # As many places as a power of two, so that few shapes are compiled.
    places = 1 << max(len(stop_ids) - 1, 7).bit_length()
    stop = np.full(places, NO_TOKEN, np.int32)
    stop[: len(stop_ids)] = stop_ids
    return Draw(
      key=jax.random.key(seed),
      temperature=np.float32(sampling.temperature),
      top_k=np.int32(sampling.top_k),
      top_p=np.float32(sampling.top_p),
      num_drawn=np.int32(self._num_drawn),
      stop_ids=stop,
    )

  def _batch_size(self, num_prompts):
    shards = self._model.mesh.shape['data'] * self._model.mesh.shape['fsdp']
    return shards << (-(-num_prompts // shards) - 1).bit_length()

  def _on_rows(self, x):
    spec = P(sharding.BATCH_SPEC[0])
    return jax.device_put(x, NamedSharding(self._model.mesh, spec))

  def _check(self, prompts, max_new, seed, stop_strings):
    if stop_strings and self._tokenizer is None:
      raise PromptError('stop_strings need a tokenizer, and there is none')
    if '' in stop_strings:
      raise PromptError('stop_strings: an empty one would stop everything')
    if max_new < 1:
      raise PromptError(f'max_new_tokens must be at least 1, got {max_new}')
    for name, value, most in (
      ('max_new_tokens', max_new, MAX_TOKENS),
      ('seed', seed, MAX_SEED),
    ):
      if value > most:
        raise PromptError(f'{name} must be at most {most}, got {value}')
    if not prompts:
      raise PromptError('there are no prompts')
    vocab_size = self._model.config.vocab_size
    for i, prompt in enumerate(prompts):
      if not len(prompt):
        raise PromptError(f'prompt {i} is empty: it needs at least one token')
      if self._max_len is not None and len(prompt) + max_new > self._max_len:
        raise PromptError(
          f'prompt {i} has {len(prompt)} tokens, and with max_new_tokens='
          f'{max_new} does not fit into max_len={self._max_len}: shorten it,'
          ' ask for fewer, or raise max_len'
        )
      least, most = np.min(prompt), np.max(prompt)
      if least < 0 or most >= vocab_size:
        raise PromptError(
          f'prompt {i} has tokens from {least} to {most}, and the model has 0'
          f' to {vocab_size - 1}: is it of another tokenizer?'
        )


class _Row:
  """What has come of one prompt."""

  def __init__(self, tokenizer, prompt, stop_strings, stop_ids, max_new):
    self._text = tokenizer and TextStream(tokenizer, prompt, stop_strings)
    self._stop_ids, self._left = stop_ids, max_new
    self._num_tokens, self.stopped_by = 0, ''

  def add(self, emitted) -> tuple[np.ndarray, str]:
    """The tokens and the text to show, of what the device drew."""
    ids = emitted[emitted != NO_TOKEN][: self._left]
    stops = [k for k, i in enumerate(ids.tolist()) if i in self._stop_ids]
    if stops:
      ids, self.stopped_by = ids[: stops[0]], 'token'
    elif len(ids) == self._left:
      self.stopped_by = 'length'
    self._left -= len(ids)
    text = ''
    if self._text:
      text = self._text.add(ids)
      if self._text.stopped_after is not None:
        ids = ids[: self._text.stopped_after - self._num_tokens]
        self.stopped_by = 'string'
      elif self.stopped_by:
        text += self._text.end()
    self._num_tokens += len(ids)
    return ids, text
