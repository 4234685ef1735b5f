"""Decoding says at every step what a full forward pass says there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longctx_jax import sharding
from longctx_jax.cached_model import CachedModel, layers_apart
from longctx_jax.config import MeshConfig, RopeConfig
from longctx_jax.model import model_graph
from tests import small
from tests.random_params import graph_and_params

B, T, C, PROMPT = 2, 48, 16, 32
CONFIG = dataclasses.replace(
  small.stage_config().model, vocab_size=64, hidden_dim=48
)
ROPE = RopeConfig(10_000.0, 'yarn', 4.0, 16)
TOKENS = np.random.default_rng(1).integers(0, 64, (B, T)).astype(np.int32)


@functools.cache
def params_of(config):
  return graph_and_params(config, ROPE)[1]


def full_logits(config):
  """[B, T, V] of whole rows: dense attention on one device."""
  dense = dataclasses.replace(config, attention='dense')

  @jax.jit
  def run(params, tokens):
    model = nnx.merge(model_graph(dense, ROPE), params)
    positions = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    x = model(tokens, jnp.ones_like(tokens), positions)
    return jnp.einsum(
      'BTD,DV->BTV',
      x,
      model.unembedding_matrix(),
      preferred_element_type=jnp.float32,
    )

  return np.asarray(run(params_of(config), jnp.asarray(TOKENS)))


def decoded_logits(config, **sizes):
  """Yields (row, index, logits [V]), by chunks and then token by token.

  The prompt of row 1 ends 11 tokens earlier than that of row 0.
  """
  num_devices = int(np.prod([*sizes.values()], initial=1))
  mesh = sharding.make_mesh(
    MeshConfig(fsdp=1, **sizes), jax.devices()[:num_devices]
  )
  model = CachedModel(config, ROPE, mesh)
  params = layers_apart(params_of(config), config, mesh)
  cache = model.make_cache(B, T)

  @functools.partial(jax.jit, donate_argnums=1)
  def read_chunk(params, cache, tokens, start):
    x, cache = model.read_chunk(params, cache, tokens, start)
    logits = jax.vmap(model.logits, (None, 1), 1)(params, x)
    return logits, cache

  @functools.partial(jax.jit, donate_argnums=1)
  def read_token(params, cache, tokens, index):
    x, cache = model.read_token(params, cache, tokens, index)
    return model.logits(params, x), cache

  for start in range(0, PROMPT, C):
    chunk = jnp.asarray(TOKENS[:, start : start + C])
    logits, cache = read_chunk(params, cache, chunk, jnp.int32(start))
    logits = np.asarray(logits)
    for b, c in np.ndindex(B, C):
      yield b, start + c, logits[b, c]
  for step in range(T - PROMPT):
    index = np.array([PROMPT + step, PROMPT - 11 + step], np.int32)
    tokens = jnp.asarray(TOKENS[np.arange(B), index])
    logits, cache = read_token(params, cache, tokens, jnp.asarray(index))
    logits = np.asarray(logits)
    for b, i in enumerate(index.tolist()):
      yield b, i, logits[b]


@pytest.mark.parametrize(
  ('sizes', 'changes'),
  [
    ({}, {}),
    ({}, {'num_kv_heads': 4, 'tie_embeddings': True}),
    ({'context': 8}, {}),
    pytest.param({'context': 4, 'tensor': 2}, {}, marks=pytest.mark.slow),
    pytest.param(
      {'data': 2, 'context': 4}, {'num_kv_heads': 1}, marks=pytest.mark.slow
    ),
    ({'data': 2, 'context': 2, 'tensor': 2}, {'tie_embeddings': True}),
  ],
  ids=str,
)
def test_decoding_equals_teacher_forcing(sizes, changes):
  config = dataclasses.replace(CONFIG, **changes)
  expected = full_logits(config)
  assert np.abs(expected).std() > 0.3
  for b, i, logits in decoded_logits(config, **sizes):
    np.testing.assert_allclose(logits, expected[b, i], rtol=0, atol=2e-5)


def test_in_bfloat16_within_its_error():
  config = dataclasses.replace(CONFIG, compute_dtype='bfloat16')
  exact, rounded = full_logits(CONFIG), full_logits(config)
  errors = [
    np.abs(logits - exact[b, i]).mean()
    for b, i, logits in decoded_logits(config)
  ]
  # As far from float32 as the forward pass in bfloat16 is.
  assert 0 < np.mean(errors) < 1.2 * np.abs(rounded - exact).mean()


def test_parameters_are_held_apart_in_the_compute_dtype():
  config = dataclasses.replace(CONFIG, compute_dtype='bfloat16')
  params = jax.tree.map(np.asarray, params_of(CONFIG))
  mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
  got = layers_apart(params, config, mesh)
  assert len(got['layers']) == CONFIG.num_layers
  gate = got['layers'][1]['mlp']['gate']
  np.testing.assert_array_equal(
    gate, jnp.bfloat16(params['blocks']['mlp']['gate'][1])
  )
  assert tuple(gate.sharding.spec) == sharding.PARAM_SPECS['gate'][1:]
  assert got['embedding'].sharding.spec == sharding.PARAM_SPECS['embedding']
  # Norms multiply in float32.
  assert got['layers'][0]['mlp_norm']['scale'].dtype == jnp.float32
  assert got['final_norm']['scale'].dtype == jnp.float32
