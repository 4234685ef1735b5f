"""Tiny models of every family: what their config.json says, seeded weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longctx_jax.config import MeshConfig
from longctx_jax.model import model_graph
from longctx_jax.sharding import make_mesh
from longctx_jax.weights.model_folder import load_params, open_model_folder

BASE = {
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 44,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
  'hidden_act': 'silu',
  'bos_token_id': 1,
  'eos_token_id': 2,
}
# Name -> config.json: every family, grouped and not, tied and not, each RoPE.
FAMILIES = {
  'llama': {'model_type': 'llama', 'num_key_value_heads': 4},
  'llama_grouped_tied': {'model_type': 'llama', 'tie_word_embeddings': True},
  'llama_wide_heads': {'model_type': 'llama', 'head_dim': 12},
  'llama_linear': {
    'model_type': 'llama',
    'rope_scaling': {'rope_type': 'linear', 'factor': 2.5},
  },
  'llama_3.1': {
    'model_type': 'llama',
    'rope_theta': 500_000.0,
    'rope_scaling': {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
  },
  'llama_yarn': {
    'model_type': 'llama',
    'rope_scaling': {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 16,
      'beta_fast': 4.0,
      'beta_slow': 1.0,
    },
  },
  'mistral': {'model_type': 'mistral', 'sliding_window': None},
  'qwen2': {'model_type': 'qwen2'},
  'qwen2_tied': {'model_type': 'qwen2', 'tie_word_embeddings': True},
}
T = 48


def config_of(name: str) -> dict[str, Any]:
  """The fields of config.json."""
  return {**BASE, **FAMILIES[name]}


def tokens() -> np.ndarray:
  """[2, T] ids."""
  rng = np.random.default_rng(7)
  return rng.integers(0, BASE['vocab_size'], (2, T)).astype(np.int32)


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
  """Weights of a size that makes logits differ, by name, the same for ever."""
  rng = np.random.default_rng(11)
  made = {}
  for name in sorted(shapes):
    values = rng.normal(size=shapes[name]).astype(np.float32)
    made[name] = 1 + 0.1 * values if 'norm' in name else 0.3 * values
  return made


def our_logits(folder: Path) -> np.ndarray:
  """[2, T, V] float32 logits of a model folder, by our model."""
  architecture, tensors = open_model_folder(folder)[1:]
  model, rope = architecture.model, architecture.rope
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  params = load_params(model, tensors, mesh)

  @jax.jit
  def run(params, tokens):
    module = nnx.merge(model_graph(model, rope), params)
    positions = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    x = module(tokens, jnp.ones_like(tokens), positions)
    return x @ module.unembedding_matrix()

  return np.asarray(run(params, tokens()))
