"""The device mesh, and where parameters and batches lie on it.

Axes: `data` replicates parameters, `fsdp` splits them (and the batch) and so
does `context` (and the sequence), `tensor` splits heads and feed-forward
columns.
"""

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.config import (
  ConfigError,
  MeshConfig,
  ModelConfig,
  StageConfig,
)
from longctx_jax.device_order import order_devices
from longctx_jax.model import attention_kernel
from longctx_jax.ops.context_parallel import (
  PARAM_AXES,
  ContextParallel,
  check_split,
)
from longctx_jax.ops.kernels.cpp_library import TILE_LEN
from longctx_jax.ops.sequence_layout import check_layout

AXES = ('data', 'fsdp', 'context', 'tensor')
BATCH_SPEC = P(('data', 'fsdp'), 'context')

# Parameter name -> axes of its dimensions. Layer kernels lead with L, unsplit.
# A long row's chips hold parts of one row, so `context` has to split parameters
# as `fsdp` does: Llama-3-8B and its Adam take 96 GB.
PARAM_SPECS = {
  'embedding': P('tensor', PARAM_AXES),  # [V, D]
  'unembedding': P(PARAM_AXES, 'tensor'),  # [D, V]
  'query': P(None, PARAM_AXES, 'tensor', None),  # [L, D, N, H]
  'key': P(None, PARAM_AXES, 'tensor', None),  # [L, D, K, H]
  'value': P(None, PARAM_AXES, 'tensor', None),
  'query_bias': P(None, 'tensor', None),  # [L, N, H]
  'key_bias': P(None, 'tensor', None),
  'value_bias': P(None, 'tensor', None),
  'out': P(None, 'tensor', None, PARAM_AXES),  # [L, N, H, D]
  'gate': P(None, PARAM_AXES, 'tensor'),  # [L, D, F]
  'up': P(None, PARAM_AXES, 'tensor'),
  'down': P(None, 'tensor', PARAM_AXES),  # [L, F, D]
}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """A mesh over all devices; an axis of -1 takes what the others leave.

  Raises:
    ConfigError: if the axes don't multiply to the number of devices, or
      `slices` is not of these devices or does not divide `data`.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(config, axis) for axis in AXES]
  free = [axis for axis, size in zip(AXES, sizes, strict=True) if size == -1]
  if len(free) > 1:
    raise ConfigError(f'mesh: only one axis may be -1, got {", ".join(free)}')
  known = math.prod(size for size in sizes if size != -1)
  if any(size < 1 and size != -1 for size in sizes) or (
    len(devices) % known if free else len(devices) != known
  ):
    raise ConfigError(
      f'mesh {dict(zip(AXES, sizes, strict=True))} does not fit the'
      f' {len(devices)} device(s) that JAX sees'
    )
  shape = [len(devices) // known if size == -1 else size for size in sizes]
  order = functools.partial(order_devices, devices, shape, config.slices)
  by_links = Mesh(order(by_links=True), AXES)
  # Links may scatter a host's rows over the batch, which no host could read.
  return (
    by_links if _is_readable(by_links) else Mesh(order(by_links=False), AXES)
  )


def _is_readable(mesh):
  try:
    for process in {device.process_index for device in mesh.devices.flat}:
      host_block(mesh, process)
  except ConfigError:
    return False
  return True


def check_divisible(config: StageConfig, mesh: Mesh) -> None:
  """Raises ConfigError where a size does not divide over the mesh."""
  model, data = config.model, config.data
  rows = data.batch_size // config.train.micro_batches
  _check_shards(mesh, 'data.seq_len', data.seq_len, ('context',))
  _check_shards(
    mesh, 'data.batch_size / train.micro_batches', rows, ('data', 'fsdp')
  )
  check_model_divides(model, mesh)
  parallel = context_parallel(config.mesh, mesh)
  try:
    check_layout(parallel.layout, data.seq_len, parallel.num_shards)
    check_split(parallel, model.num_heads, model.num_kv_heads)
    attention_kernel(config.model, parallel, data.seq_len)
  except ValueError as error:
    raise ConfigError(f'mesh and model: {error}') from error


def check_model_divides(model: ModelConfig, mesh: Mesh) -> None:
  """Raises ConfigError where a parameter does not divide over the mesh."""
  tensor = ('tensor',)
  for field, axes in (
    ('embed_dim', PARAM_AXES),
    ('hidden_dim', tensor),
    ('num_heads', tensor),
    ('num_kv_heads', tensor),
    ('vocab_size', tensor),
  ):
    _check_shards(mesh, f'model.{field}', getattr(model, field), axes)
  if model.mlp_chunk_width:
    num_chunks = model.hidden_dim // model.mlp_chunk_width
    what = 'model.hidden_dim / model.mlp_chunk_width'
    _check_shards(mesh, what, num_chunks, tensor)


def _check_shards(mesh, what, size, axes):
  shards = math.prod(mesh.shape[axis] for axis in axes)
  if size % shards:
    raise ConfigError(
      f'{what}={size} does not divide over the {shards} shards of mesh axis'
      f' {" x ".join(axes)}'
    )


def context_parallel(config: MeshConfig, mesh: Mesh) -> ContextParallel:
  """How the stage's rows are split over `mesh`."""
  return ContextParallel(
    mesh, config.context_kind, config.context_layout, config.vocab_axes
  )


def describe_attention(config: StageConfig, mesh: Mesh) -> str:
  """How the stage attends on this mesh, and why so: a line for the log."""
  if config.model.attention == 'dense':
    return 'dense attention, as the config says'
  parallel = context_parallel(config.mesh, mesh)
  choice, block_len = attention_kernel(
    config.model, parallel, config.data.seq_len
  )
  how = f'kernel {choice.name!r} ({choice.reason})'
  if choice.name == 'cudnn':
    how += ", or 'xla' on a device while a row there holds several documents,"
  if choice.name == 'cpp':
    block_len = TILE_LEN  # its own, whatever the config says
  return (
    f'attention by {how} in blocks of {block_len},'
    f' {parallel.num_shards} context shard(s)'
  )


def param_shardings(tree, mesh: Mesh):
  """A NamedSharding for each leaf of parameters or of optimizer state.

  Optimizer moments mirror the parameters' paths and shapes, so one rule by
  name serves both; whatever else there is (counters) is replicated.
  """

  def one(path, leaf):
    spec = PARAM_SPECS.get(leaf_name(path), P())
    return NamedSharding(mesh, spec if len(spec) <= np.ndim(leaf) else P())

  return jax.tree_util.tree_map_with_path(one, tree)


def leaf_name(path) -> str:
  """The last dictionary key on a tree path: the parameter's own name."""
  keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
  return str(keys[-1]) if keys else ''


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`, positions over `context`."""
  return NamedSharding(mesh, BATCH_SPEC)


def host_block(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """(index, number) of the equal blocks of a batch's rows that a process needs.

  Processes that split the same rows over `context` or `tensor` need the same
  block. Four processes, two devices each:

      data 4, context 2      blocks 0 1 2 3 of 4
      data 2, context 4      blocks 0 0 1 1 of 2

  Raises:
    ConfigError: the devices of a process are not such a block.
  """
  process = jax.process_index() if process is None else process
  owners = [
    {device.process_index for device in row}
    for row in mesh.devices.reshape(
      mesh.shape['data'] * mesh.shape['fsdp'], -1
    ).tolist()
  ]
  needed = [row for row, owner in enumerate(owners) if process in owner]
  size, start = len(needed), needed[0]
  if needed[-1] != start + size - 1 or start % size or len(owners) % size:
    raise ConfigError(
      f'mesh {dict(mesh.shape)}: process {process} has the rows {needed} of'
      f' {len(owners)}, which are no equal block. Let data * fsdp or'
      ' context * tensor be a multiple of the devices of a process'
    )
  return start // size, len(owners) // size
