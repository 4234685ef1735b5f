"""The plan of one stage on one topology: what it takes, and how long."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longctx_jax import sharding
from longctx_jax.config import ConfigError, StageConfig
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.ring_attention import DOWN, loop_trips, needed_hops
from longctx_jax.ops.sequence_layout import stored_index
from longctx_jax.ops.tiles import count_tiles, shard_extents
from longctx_jax.plan.collectives import Collective, collectives
from longctx_jax.plan.compile_step import Memory, compile_step
from longctx_jax.plan.hlo import (
  Instruction,
  Trips,
  parse_program,
  unknown_loops,
)
from longctx_jax.plan.step_flops import StepFlops, step_flops
from longctx_jax.plan.step_time import (
  StepTime,
  hbm_bytes,
  host_bytes,
  step_time,
)
from longctx_jax.plan.topology import Chip, chip_of, topology_devices


class Plan(NamedTuple):
  """All that is said of a stage; a `problem` leaves no `sent` and no `time`."""

  config: StageConfig
  topology: str
  num_slices: int
  chip: Chip
  axis_sizes: dict[str, int]
  document_len: int  # assumed; 0: a document fills its row
  memory: Memory
  flops: StepFlops
  sent: tuple[Collective, ...]
  hbm_bytes: float  # read and written by one chip in a step
  time: StepTime | None
  problem: str  # why there is no time
  seconds: float  # that compiling took

  @property
  def num_chips(self) -> int:
    """Of all slices together."""
    size = 1
    for n in self.axis_sizes.values():
      size *= n
    return size

  @property
  def tokens_per_step(self) -> int:
    """Of the whole batch."""
    return self.config.data.batch_size * self.config.data.seq_len

  @property
  def mfu(self) -> float:
    """Model FLOPs against the chips' peak, in the predicted time."""
    peak = self.num_chips * self.chip.peak_flops
    return self.flops.model / (self.time.step_s * peak)

  @property
  def days(self) -> float:
    """Of the whole stage, nothing but steps."""
    return self.time.step_s * self.config.train.steps / 86_400

  @property
  def chip_hours(self) -> float:
    """Of the whole stage."""
    return 24 * self.days * self.num_chips


def plan_stage(
  config: StageConfig,
  topology: str,
  *,
  document_len: int = 0,
) -> Plan:
  """Compiles the stage's step for a topology and predicts its time.

  Args:
    config: the stage; its mesh must multiply to the chips there are.
    topology: such as 'v5p:2x2x4'; of one slice, of which there are mesh.slices.
    document_len: tokens of the documents in a row, where documents are masked;
      0: each row is one document, which is the most there can be to do.

  Raises:
    ConfigError: sizes that don't fit each other, no such topology, no libtpu.
  """
  chip = chip_of(topology)
  num_slices = config.mesh.slices
  devices = topology_devices(topology, num_slices)
  try:
    mesh = sharding.make_mesh(config.mesh, devices)
  except ConfigError as error:
    slices = f' x {num_slices} slices' if num_slices > 1 else ''
    raise ConfigError(
      f'{config.name}: {error}: --topology={topology}{slices} has'
      f' {len(devices)} chips'
    ) from error
  if not config.data.document_mask:
    document_len = 0
  step = compile_step(config, mesh, chip)
  flops = step_flops(config, step.jaxpr, document_len=document_len)
  sent, touched, seconds, problem = (), 0.0, None, step.problem
  if step.text:
    parallel = sharding.context_parallel(config.mesh, mesh)
    trips = ring_trips(parallel, config, document_len)
    program = parse_program(step.text)
    problem = _problem(unknown_loops(program, trips))
  if step.text and not problem:
    slice_of = np.array(
      [getattr(device, 'slice_index', 0) or 0 for device in mesh.devices.flat]
    )
    sent = tuple(collectives(program, trips, dict(mesh.shape), slice_of))
    touched = hbm_bytes(program, trips)
    seconds = step_time(
      chip,
      mesh.size,
      hardware_flops=flops.hardware,
      hbm_bytes=touched,
      sent=sent,
      host_bytes=host_bytes(program, trips),
    )
  return Plan(
    config=config,
    topology=topology,
    num_slices=num_slices,
    chip=chip,
    axis_sizes=dict(mesh.shape),
    document_len=document_len,
    memory=step.memory,
    flops=flops,
    sent=sent,
    hbm_bytes=touched,
    time=seconds,
    problem=problem,
    seconds=step.seconds,
  )


def _problem(loops):
  if not loops:
    return ''
  return (
    f'nothing is predicted: the compiled program does not say how often'
    f' {len(loops)} of its loops run, such as {loops[0]}'
  )


def ring_trips(
  parallel: ContextParallel, config: StageConfig, document_len: int
) -> Trips:
  """Trips of the ring's loops, for rows of documents of a length.

  As in `ops.ring_attention`, which decides it from each batch anew.
  """
  R, T = parallel.num_shards, config.data.seq_len
  if parallel.kind != 'ring' or R == 1:
    return lambda _: None
  index = stored_index(parallel.layout, T, R)
  length = document_len or T
  segment_ids = jnp.asarray(1 + index // length, jnp.int32)
  block_len = parallel.fit_block(config.model.attention_block_len, T)
  indices = jnp.asarray(index.reshape(R, -1))
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    extents = shard_extents(segment_ids.reshape(R, 1, -1), indices, block_len)
    needed = jnp.any(count_tiles(extents, extents) > 0, axis=0)
    hops = needed_hops(needed, parallel.layout)
    trips, goes_down = loop_trips(hops, R), float(hops.down > 0)

  def of_loop(loop: Instruction) -> float | None:
    names = tuple(
      part for part in loop.op_name.split('/') if part.startswith('ring_')
    )
    if loop.opcode == 'conditional':
      return goes_down if names == (DOWN,) else None
    return trips.get(names)

  return of_loop


def as_json(plan: Plan) -> dict[str, Any]:
  """The plan as numbers, for machines; everything predicted is under that."""
  memory, flops = plan.memory, plan.flops
  answer = {
    'stage': plan.config.name,
    'topology': plan.topology,
    'slices': plan.num_slices,
    'chips': plan.num_chips,
    'mesh': plan.axis_sizes,
    'remat': plan.config.model.remat,
    'seq_len': plan.config.data.seq_len,
    'batch_size': plan.config.data.batch_size,
    'document_len': plan.document_len or plan.config.data.seq_len,
    'fits': memory.fits,
    'hbm_bytes_per_chip': {
      'arguments': memory.arguments,
      'temporaries': memory.temporaries,
      'outputs': memory.outputs,
      'outputs_in_place_of_arguments': memory.aliased,
      'total': memory.total,
      'capacity': memory.capacity,
      'overshoot': max(0, memory.total - memory.capacity),
    },
    'flops_per_step': {
      'model': flops.model,
      'model_causal': flops.model_causal,
      'hardware': flops.hardware,
    },
    'collectives': [
      {
        'kind': one.kind,
        'axis': one.axis,
        'count': one.count,
        'bytes': one.bytes,
        'network': 'dcn' if one.crosses_slices else 'ici',
      }
      for one in plan.sent
    ],
    'compile_s': plan.seconds,
    'problem': plan.problem,
    'chip': {
      'peak_flops': plan.chip.peak_flops,
      'hbm_bytes_per_s': plan.chip.hbm_bytes_per_s,
      'ici_bytes_per_s_per_link': plan.chip.ici_bytes_per_s,
      'ici_links': plan.chip.ici_links,
      'dcn_bytes_per_s': plan.chip.dcn_bytes_per_s,
      'host_bytes_per_s': plan.chip.host_bytes_per_s,
      'source': plan.chip.source,
    },
    'predicted': None,
  }
  if plan.time is not None:
    answer['predicted'] = {
      'step_s': plan.time.step_s,
      'step_s_if_nothing_is_hidden': plan.time.unhidden_s,
      'terms_s': plan.time._asdict(),
      'tokens_per_s': plan.tokens_per_step / plan.time.step_s,
      'bottleneck': plan.time.bottleneck,
      'mfu': plan.mfu,
      'days': plan.days,
      'chip_hours': plan.chip_hours,
    }
  return answer


def with_choice(
  config: StageConfig, mesh: dict[str, int], remat: str
) -> StageConfig:
  """The stage on another mesh, with another remat policy."""
  return dataclasses.replace(
    config,
    mesh=dataclasses.replace(config.mesh, **mesh),
    model=dataclasses.replace(config.model, remat=remat),
  )
