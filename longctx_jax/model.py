"""A Llama-type decoder in Flax NNX: RMSNorm, grouped-query attention, SwiGLU.

Layers are one `Block` whose parameters carry a leading layer axis L, applied by
a scan: compile time does not grow with depth. The dtype policy lives here
alone: parameters in `param_dtype`, products in `compute_dtype`; norms, RoPE and
softmax in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.config import ModelConfig, RopeConfig
from longctx_jax.ops.attention import dense_attention
from longctx_jax.ops.blockwise_attention import KEPT, blockwise_attention
from longctx_jax.ops.blockwise_mlp import Chunks, blockwise_mlp, swiglu
from longctx_jax.ops.cast import cast_kernel
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.kernels.choice import (
  Choice,
  choose_kernel,
  facts_of,
  kernel_of,
)
from longctx_jax.ops.rope import apply_rope, rope_frequencies
from longctx_jax.ops.sequence_layout import stored_index

# What a layer starts from, [B, T, D]: all that 'full' and 'offload' keep of it.
BLOCK_INPUT = 'block_input'

_policies = jax.checkpoint_policies
_keep_attention = _policies.save_only_these_names(KEPT)
REMAT_POLICIES = {
  'dots': _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _keep_attention
  ),
  'attention': _keep_attention,
  'full': _policies.nothing_saveable,
  'offload': _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[BLOCK_INPUT],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


# (q, k, v) -> out: which tokens attend to which, and how that is computed.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class RMSNorm(nnx.Module):
  """Root-mean-square norm (arXiv:1910.07467), float32 inside."""

  def __init__(self, dim: int, eps: float, dtype):
    self.scale = nnx.Param(jnp.ones((dim,), dtype))
    self.eps = eps

  @typed
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Scales each token to unit root mean square, then by `scale`."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
    scale = self.scale[...].astype(jnp.float32)[None, None]
    return (normed * scale).astype(x.dtype)


def _kernel(rngs, shape, num_inputs, dtype, scale=1.0):
  """A weight drawn so that unit inputs give outputs of size `scale`."""
  std = scale * num_inputs**-0.5
  draw = jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32)
  return nnx.Param((std * draw).astype(dtype))


class Attention(nnx.Module):
  """Grouped-query attention (arXiv:2305.13245) with RoPE."""

  def __init__(self, config: ModelConfig, rope: RopeConfig, rngs: nnx.Rngs):
    D, N, K, H = (
      config.embed_dim,
      config.num_heads,
      config.num_kv_heads,
      config.head_dim,
    )
    how = config.param_dtype, config.block_init_scale
    self.query = _kernel(rngs, (D, N, H), D, *how)
    self.key = _kernel(rngs, (D, K, H), D, *how)
    self.value = _kernel(rngs, (D, K, H), D, *how)
    self.out = _kernel(rngs, (N, H, D), N * H, *how)
    if config.qkv_bias:
      self.query_bias = nnx.Param(jnp.zeros((N, H), config.param_dtype))
      self.key_bias = nnx.Param(jnp.zeros((K, H), config.param_dtype))
      self.value_bias = nnx.Param(jnp.zeros((K, H), config.param_dtype))
    self.config, self.rope = config, rope

  @typed
  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    attend: Attend,
  ) -> Float[Array, 'B T D']:
    """What `attend` says of who sees whom, between the projections."""
    rope = {f: v for f, v in vars(self.rope).items() if f != 'base'}
    frequencies, scale = rope_frequencies(
      self.config.head_dim, self.rope.base, **rope
    )
    rotate = functools.partial(
      apply_rope,
      positions=positions,
      frequencies=frequencies,
      scale=scale,
    )
    q, k, v = self._project(x)
    out = attend(rotate(q), rotate(k), v)
    B, T, D = x.shape
    # Heads flat: on CPUs XLA transposes the kernel each time it sums over two.
    kernel = cast_kernel(self.out[...], x.dtype).reshape(-1, D)
    return out.reshape(B, T, -1) @ kernel

  def _project(self, x):
    """Queries [B, T, N, H], keys and values [B, T, K, H]."""
    kernels = (self.query, self.key, self.value)
    projected = [
      jnp.einsum('BTD,DNH->BTNH', x, cast_kernel(kernel[...], x.dtype))
      for kernel in kernels
    ]
    if not self.config.qkv_bias:
      return projected
    biases = (self.query_bias, self.key_bias, self.value_bias)
    return [
      y + bias[...].astype(x.dtype)[None, None]
      for y, bias in zip(projected, biases, strict=True)
    ]


def attention_path(
  config: ModelConfig, parallel: ContextParallel | None, T: int
) -> Callable[..., jax.Array]:
  """The attention of this config: (q, k, v, segment_ids=...) -> out."""
  if config.attention == 'dense':
    if parallel is None:
      return dense_attention
    index = stored_index(parallel.layout, T, parallel.num_shards)
    return functools.partial(dense_attention, index=jnp.asarray(index))
  if parallel is None:
    return functools.partial(
      blockwise_attention, block_len=config.attention_block_len
    )
  choice, block_len = attention_kernel(config, parallel, T)
  return functools.partial(
    context_parallel_attention,
    parallel=parallel,
    block_len=block_len,
    kernel=kernel_of(choice.name),
  )


def attention_kernel(
  config: ModelConfig, parallel: ContextParallel, T: int
) -> tuple[Choice, int]:
  """The kernel for rows of T tokens, with its reason, and its blocks' length.

  Raises:
    ValueError: the config names a kernel that can't run there.
  """
  block_len = parallel.fit_block(config.attention_block_len, T)
  facts = facts_of(
    parallel,
    block_len=block_len,
    head_dim=config.head_dim,
    dtype=config.compute_dtype,
  )
  return choose_kernel(config.attention_kernel, facts), block_len


class MLP(nnx.Module):
  """SwiGLU (arXiv:2002.05202)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    D, F = config.embed_dim, config.hidden_dim
    how = config.param_dtype, config.block_init_scale
    self.gate = _kernel(rngs, (D, F), D, *how)
    self.up = _kernel(rngs, (D, F), D, *how)
    self.down = _kernel(rngs, (F, D), F, *how)
    self.chunks = Chunks(config.mlp_chunk_len, config.mlp_chunk_width)

  @typed
  def __call__(
    self, x: Float[Array, 'B T D'], parallel: ContextParallel | None = None
  ) -> Float[Array, 'B T D']:
    """Token by token: down(silu(gate(x)) * up(x))."""
    kernels = [kernel[...] for kernel in (self.gate, self.up, self.down)]
    if any(self.chunks):
      return blockwise_mlp(x, *kernels, chunks=self.chunks, parallel=parallel)
    return swiglu(x, *(cast_kernel(kernel, x.dtype) for kernel in kernels))


class Block(nnx.Module):
  """One pre-norm layer."""

  def __init__(self, config: ModelConfig, rope: RopeConfig, rngs: nnx.Rngs):
    norm = functools.partial(
      RMSNorm, config.embed_dim, config.norm_eps, config.param_dtype
    )
    self.attention_norm, self.mlp_norm = norm(), norm()
    self.attention = Attention(config, rope, rngs)
    self.mlp = MLP(config, rngs)

  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    attend: Attend,
    parallel: ContextParallel | None = None,
  ) -> jax.Array:
    """[B, T, D] -> [B, T, D]; `parallel` is for an MLP in chunks alone."""
    x = x + self.attention(self.attention_norm(x), positions, attend)
    return x + self.mlp(self.mlp_norm(x), parallel)


class Transformer(nnx.Module):
  """Tokens to final hidden states; the loss does the unembedding in chunks.

  With `parallel`, tokens arrive in its layout and lie on its mesh.
  """

  def __init__(
    self,
    config: ModelConfig,
    rope: RopeConfig,
    parallel: ContextParallel | None = None,
    *,
    rngs: nnx.Rngs,
  ):
    V, D, L = config.vocab_size, config.embed_dim, config.num_layers
    self.embedding = _kernel(rngs, (V, D), D, config.param_dtype)

    @nnx.split_rngs(splits=L)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_blocks(rngs):
      return Block(config, rope, rngs)

    self.blocks = make_blocks(rngs)
    self.final_norm = RMSNorm(D, config.norm_eps, config.param_dtype)
    if not config.tie_embeddings:
      self.unembedding = _kernel(rngs, (D, V), D, config.param_dtype)
    self.config, self.parallel = config, parallel

  def unembedding_matrix(self) -> jax.Array:
    """[D, V] in the compute dtype."""
    config = self.config
    kernel = (
      self.embedding[...].T if config.tie_embeddings else self.unembedding[...]
    )
    return kernel.astype(config.compute_dtype)

  @typed
  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    segment_ids: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
  ) -> Float[Array, 'B T D']:
    """Final hidden states, normed and ready for `unembedding_matrix`."""
    config = self.config
    embedding = self.embedding[...]
    if self.parallel is not None and self.parallel.apart:
      # On a table that is split, XLA's partitioner dies inside of `shard_map`
      # (jaxlib 0.10.2, libtpu 0.0.42: spmd_partitioner_util.cc:497).
      embedding = jax.lax.with_sharding_constraint(embedding, P(None, None))
    x = embedding[tokens].astype(config.compute_dtype)

    attend = functools.partial(
      attention_path(config, self.parallel, tokens.shape[1]),
      segment_ids=segment_ids,
    )

    def apply_block(x, block):
      x = checkpoint_name(x, BLOCK_INPUT)
      return block(x, positions, attend, self.parallel)

    if config.remat != 'none':
      apply_block = nnx.remat(
        apply_block,
        policy=REMAT_POLICIES[config.remat],
        # Inside a loop XLA cannot merge the second computation with the first;
        # written out it can, and would keep all that remat is to drop.
        prevent_cse=config.scan_unroll != 1,
      )
    unroll = config.scan_unroll
    scan = nnx.scan(
      apply_block,
      in_axes=(nnx.Carry, 0),
      out_axes=nnx.Carry,
      unroll=config.num_layers if unroll == -1 else unroll,
    )
    return self.final_norm(scan(x, self.blocks))


def model_graph(
  config: ModelConfig,
  rope: RopeConfig,
  parallel: ContextParallel | None = None,
) -> nnx.GraphDef:
  """The model without parameters: `nnx.merge(graph, params)` makes one."""
  return nnx.split(
    nnx.eval_shape(
      lambda: Transformer(config, rope, parallel, rngs=nnx.Rngs(0))
    )
  )[0]
