"""Parameters of a real model filled by numpy: no compilation, so no wait."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longctx_jax.config import ModelConfig, RopeConfig
from longctx_jax.model import Transformer, model_graph


def graph_and_params(
  config: ModelConfig, rope: RopeConfig, seed: int = 0
) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """(graph, params); kernels are of size 1 / sqrt(D), norm scales about 1."""
  shapes = nnx.eval_shape(lambda: Transformer(config, rope, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    values = rng.normal(size=leaf.shape)
    if path[-1].key == 'scale':
      return jnp.asarray(1 + 0.1 * values, leaf.dtype)
    return jnp.asarray(values * config.embed_dim**-0.5, leaf.dtype)

  shapes = nnx.to_pure_dict(nnx.state(shapes))
  return (
    model_graph(config, rope),
    jax.tree_util.tree_map_with_path(one, shapes),
  )
