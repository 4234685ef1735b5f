"""A stage's training state, and the compiled step that updates it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from longctx_jax import sharding
from longctx_jax.batch import Batch
from longctx_jax.config import StageConfig
from longctx_jax.loss import loss_sum_and_weight
from longctx_jax.model import Transformer, model_graph
from longctx_jax.ops.attention_work import attended_pairs, attention_work
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.optimizer import make_optimizer, make_schedule


class TrainState(NamedTuple):
  """All that a step reads and writes; `step` counts the updates made."""

  step: jax.Array
  params: Any
  opt_state: Any


def make_model(config: StageConfig) -> Transformer:
  """A freshly initialised model; a function of config and seed."""
  return Transformer(config.model, config.rope, rngs=nnx.Rngs(config.seed))


def _first_state(config):
  """The state before the first step."""
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  params = nnx.to_pure_dict(nnx.state(make_model(config)))
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def init_state(config: StageConfig, mesh: Mesh) -> TrainState:
  """The state before the first step, each array made where it belongs."""
  init = functools.partial(_first_state, config)
  shardings = sharding.param_shardings(jax.eval_shape(init), mesh)
  return jax.jit(init, out_shardings=shardings)()


def abstract_state(config: StageConfig, mesh: Mesh) -> TrainState:
  """`init_state` in shapes, dtypes and places alone: nothing is made."""
  shapes = jax.eval_shape(functools.partial(_first_state, config))

  def place(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(place, shapes, sharding.param_shardings(shapes, mesh))


def abstract_batch(config: StageConfig, mesh: Mesh) -> Batch:
  """A batch on the mesh, in shapes, dtypes and places alone."""
  shape = config.data.batch_size, config.data.seq_len
  place = functools.partial(
    jax.ShapeDtypeStruct, shape, sharding=sharding.batch_sharding(mesh)
  )
  dtypes = {'loss_weights': jnp.float32}
  return Batch(
    **{name: place(dtypes.get(name, jnp.int32)) for name in Batch._fields}
  )


def mean_loss_and_grads(
  graph: nnx.GraphDef,
  params: Any,
  batch: Batch,
  num_micro: int,
  apart: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, Any]:
  """Mean token loss, its total weight, and the gradient of the mean.

  The batch runs as `num_micro` pieces whose loss sums, weights and gradients
  are added, and divided once at the end: the result is that of one big batch,
  however unevenly the pieces are filled.

  On a mesh that is `apart`, each part of its axis `data` adds up its own share
  of all pieces first, and they tell each other once instead of `num_micro`
  times. The model's `parallel` has to be `apart` too.
  """
  own_sums = sums = functools.partial(_sums, graph, num_micro)
  if apart is not None:
    sums = jax.shard_map(
      lambda params, batch: jax.lax.psum(own_sums(params, batch), 'data'),
      mesh=apart,
      in_specs=(P(), P('data')),
      out_specs=P(),
      axis_names={'data'},
      check_vma=False,
    )
  loss_sum, weight, grads = sums(params, batch)
  # A batch without a single target changes nothing, rather than to NaN.
  safe_weight = jnp.maximum(weight, 1e-8)
  grads = jax.tree.map(lambda g: g / safe_weight, grads)
  return loss_sum / safe_weight, weight, grads


def _sums(graph, num_micro, params, batch):
  """(loss sum, weight, gradients) of all pieces together."""

  def loss_fn(params, batch):
    return loss_sum_and_weight(nnx.merge(graph, params), batch)

  def accumulate(totals, batch):
    (loss_sum, weight), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, batch
    )
    return jax.tree.map(jnp.add, totals, (loss_sum, weight, grads)), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  sums, _ = jax.lax.scan(
    accumulate,
    (jnp.float32(0), jnp.float32(0), zeros),
    jax.tree.map(lambda x: _split(x, num_micro), batch),
  )
  return sums


def _split(x, num_micro):
  """[B, T] -> [num_micro, B / num_micro, T]."""
  # Strided, so that each piece is spread over the mesh as the whole is.
  return x.reshape(-1, num_micro, x.shape[-1]).swapaxes(0, 1)


def _laid_out_as_stored(grad):
  """Dimensions in memory as in arguments, the last one innermost.

  XLA lets an update have the layout of its gradient, for which it copies
  parameter and moments there and back: 0.8 GB a chip for the unembedding of
  Llama-3-8B on eight.
  """
  return with_layout_constraint(grad, Layout(tuple(range(grad.ndim))))


def attention_metrics(
  config: StageConfig, parallel: ContextParallel, segment_ids: jax.Array
) -> dict[str, jax.Array]:
  """Counters of one layer's attention to a batch, stored in its layout.

  Dense attention makes all scores, not in tiles, and XLA moves its keys, so
  there is nothing else to count of it than the pairs that attend.
  """
  metrics = {'attended_pairs': attended_pairs(segment_ids)}
  if config.model.attention == 'dense':
    return metrics
  work = attention_work(
    _split(segment_ids, config.train.micro_batches),
    parallel,
    config.model.attention_block_len,
  )
  return {
    **metrics,
    'attention_tile_share': work.tile_share,
    'ring_hop_share': work.hop_share,
    'device_imbalance': work.imbalance,
  }


def make_train_step(config: StageConfig, mesh: Mesh):
  """The compiled (state, batch) -> (state, metrics); the state is donated."""
  parallel = sharding.context_parallel(config.mesh, mesh)
  # Within a slice there is no network to spare.
  apart = config.mesh.slices > 1
  graph = model_graph(config.model, config.rope, parallel._replace(apart=apart))
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  schedule = make_schedule(
    config.optimizer, config.optimizer.peak_lr, config.train.steps
  )

  def train_step(state: TrainState, batch: Batch):
    loss, weight, grads = mean_loss_and_grads(
      graph,
      state.params,
      batch,
      config.train.micro_batches,
      mesh if apart else None,
    )
    grads = jax.tree.map(_laid_out_as_stored, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'lr': schedule(state.step),
      'target_weight': weight,
      'tokens': jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
      **attention_metrics(config, parallel, batch.segment_ids),
    }
    return TrainState(state.step + 1, params, opt_state), metrics

  return jax.jit(train_step, donate_argnums=0)
