"""The model on new tokens alone: what came before is in a cache.

The blocks are those of `model.Transformer`, told to attend to the cache. Their
parameters are held layer by layer, in the dtype they are multiplied in, and
the layers are written out one after the other: a slice of stacked parameters
would be copied for every token, which is three times the memory traffic of
reading them, and that traffic is all that decoding costs.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from longctx_jax import sharding
from longctx_jax.array_types import typed
from longctx_jax.config import ModelConfig, RopeConfig
from longctx_jax.model import Block, RMSNorm
from longctx_jax.ops import cache_attention
from longctx_jax.ops.cache_attention import LayerCache
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.kernels.choice import (
  Choice,
  cache_kernel_of,
  choose_cache_kernel,
  facts_of,
)

Cache = tuple[LayerCache, ...]  # one per layer


class CachedModel(NamedTuple):
  """What is compiled; hashable, so that calls of equal ones share programs."""

  config: ModelConfig
  rope: RopeConfig
  mesh: Mesh

  def make_cache(self, batch_size: int, S: int) -> Cache:
    """Zeros for `batch_size` rows of S tokens, on the mesh."""
    config = self.config
    return tuple(
      cache_attention.make_layer_cache(
        batch_size,
        S,
        config.num_kv_heads,
        config.head_dim,
        config.compute_dtype,
        self.mesh,
      )
      for _ in range(config.num_layers)
    )

  def cache_shardings(self) -> tuple[LayerCache, ...]:
    """Where each array of `make_cache` lies."""
    specs = cache_attention.CACHE_SPECS
    layer = LayerCache(*(NamedSharding(self.mesh, spec) for spec in specs))
    return (layer,) * self.config.num_layers

  @typed
  def read_chunk(
    self,
    params: Any,
    cache: Cache,
    tokens: Int[Array, 'B C'],
    start: Int[Array, ''],
  ) -> tuple[Float[Array, 'B C D'], Cache]:
    """Final hidden states of tokens at start, start + 1, ... of every row."""
    positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    kernel = cache_kernel_of(self.prompt_kernel().name)
    return self._run(
      params,
      cache,
      tokens,
      jnp.broadcast_to(positions[None], tokens.shape),
      functools.partial(
        cache_attention.attend_chunk, start=start, kernel=kernel
      ),
      P(sharding.BATCH_SPEC[0], 'context', None),
    )

  @typed
  def read_token(
    self,
    params: Any,
    cache: Cache,
    tokens: Int[Array, ' B'],
    index: Int[Array, ' B'],
  ) -> tuple[Float[Array, 'B D'], Cache]:
    """Final hidden state of one token per row, at an index of its own."""
    x, cache = self._run(
      params,
      cache,
      tokens[:, None],
      index[:, None],
      functools.partial(cache_attention.attend_token, index=index),
      P(sharding.BATCH_SPEC[0], None, None),
    )
    return x[:, 0], cache

  @typed
  def logits(self, params: Any, x: Float[Array, 'B D']) -> Float[Array, 'B V']:
    """Float32 logits of final hidden states."""
    subscripts, kernel = (
      ('BD,VD->BV', 'embedding')
      if self.config.tie_embeddings
      else ('BD,DV->BV', 'unembedding')
    )
    return jnp.einsum(
      subscripts, x, params[kernel], preferred_element_type=jnp.float32
    )

  def prompt_kernel(self) -> Choice:
    """The kernel that attends in `read_chunk`, and why."""
    config = self.config
    facts = facts_of(
      ContextParallel(self.mesh),
      block_len=config.attention_block_len,
      head_dim=config.head_dim,
      dtype=config.compute_dtype,
    )
    return choose_cache_kernel(config.attention_kernel, facts)

  def _run(self, params, cache, tokens, positions, attend, x_spec):
    block_graph, norm_graph = _graphs(self.config, self.rope)
    x = params['embedding'][tokens]
    x = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, x_spec))
    filled = []
    for layer_params, layer_cache in zip(params['layers'], cache, strict=True):

      def attend_and_fill(q, k, v, layer_cache=layer_cache):
        out, new = attend(q, k, v, layer_cache, mesh=self.mesh)
        filled.append(new)
        return out

      block = nnx.merge(block_graph, layer_params)
      x = block(x, positions, attend_and_fill)
    norm = nnx.merge(norm_graph, params['final_norm'])
    return norm(x), tuple(filled)


@functools.cache
def _graphs(config: ModelConfig, rope: RopeConfig):
  """(a block, the final norm) without their parameters."""
  # Prompts are read in chunks as it is.
  config = dataclasses.replace(config, mlp_chunk_len=0, mlp_chunk_width=0)
  return tuple(
    nnx.split(nnx.eval_shape(make))[0]
    for make in (
      lambda: Block(config, rope, nnx.Rngs(0)),
      lambda: RMSNorm(config.embed_dim, config.norm_eps, config.param_dtype),
    )
  )


def layers_apart(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
  """A Transformer's parameters as `CachedModel` takes them.

  Kernels are cast to the compute dtype, scales of norms are not: they are used
  in float32. Where dtype and place stay, nothing is copied but the layers'
  slices, one at a time; parameters may be numpy arrays, memory-mapped ones too.
  """

  def place(path, leaf, layer=None):
    name = sharding.leaf_name(path)
    spec = sharding.PARAM_SPECS.get(name, P())
    if layer is not None:
      leaf, spec = leaf[layer], P(*spec[1:])
    dtype = leaf.dtype if name == 'scale' else config.compute_dtype
    return jax.device_put(leaf.astype(dtype), NamedSharding(mesh, spec))

  def tree(params, layer=None):
    return jax.tree_util.tree_map_with_path(
      functools.partial(place, layer=layer), params
    )

  whole = tree({k: v for k, v in params.items() if k != 'blocks'})
  layers = tuple(
    tree(params['blocks'], layer) for layer in range(config.num_layers)
  )
  return {**whole, 'layers': layers}
