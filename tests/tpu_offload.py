"""Prints what a small model's gradient keeps in the memory of TPUs' hosts.

Nothing runs: libtpu compiles for chips that are not there. A test starts this
in a process of its own, because libtpu reads its settings once.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
from flax import nnx

from longctx_jax.batch import Batch
from longctx_jax.config import MeshConfig, RopeConfig
from longctx_jax.loss import loss_sum_and_weight
from longctx_jax.model import Transformer, model_graph
from longctx_jax.plan.topology import topology_devices
from longctx_jax.sharding import (
  batch_sharding,
  context_parallel,
  make_mesh,
  param_shardings,
)
from tests import small

T, LAYERS, WIDTH = 1024, 6, 512
MODEL = dataclasses.replace(
  small.stage_config().model,
  embed_dim=WIDTH,
  hidden_dim=1024,
  num_layers=LAYERS,
  head_dim=128,
  compute_dtype='bfloat16',
  attention='dense',
)
ROPE = RopeConfig(10_000.0)


def host_bytes(topology: str, remat: str) -> int:
  """Of a host's memory, for one chip, while a gradient is made."""
  config = MeshConfig(fsdp=1, context=-1)
  mesh = make_mesh(config, topology_devices(topology))
  model = dataclasses.replace(MODEL, remat=remat)
  graph = model_graph(model, ROPE, context_parallel(config, mesh))

  def gradient(params, batch):
    return jax.grad(
      lambda p: loss_sum_and_weight(nnx.merge(graph, p), batch)[0]
    )(params)

  def array(like, sharding):
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)

  shapes = nnx.eval_shape(lambda: Transformer(model, ROPE, rngs=nnx.Rngs(0)))
  shapes = nnx.to_pure_dict(nnx.state(shapes))
  where = param_shardings(shapes, mesh)
  batch = Batch(
    *(
      jax.ShapeDtypeStruct((1, T), dtype, sharding=batch_sharding(mesh))
      for dtype in (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    )
  )
  run = jax.jit(gradient, out_shardings=where)
  lowered = run.lower(jax.tree.map(array, shapes, where), batch)
  return lowered.compile().memory_analysis().host_temp_size_in_bytes


if __name__ == '__main__':
  print(
    json.dumps({r: host_bytes(sys.argv[1], r) for r in ('full', 'offload')})
  )
