"""How long a step takes, predicted from what a chip is published to do.

Five terms, each the time that one part of a chip would need if it ran at its
published peak all the while:

  compute  hardware FLOPs / peak FLOP/s
  HBM      bytes that instructions read and write / HBM bandwidth
  ICI      bytes sent over the links between chips of a slice / their bandwidth
  DCN      bytes sent between slices / a chip's share of the network
  host     bytes to or from the host's memory, the more of both / PCIe's one way

The prediction is the longest term, the bottleneck: all else is hidden behind
it. No step is faster. Nobody ran these chips, so nothing is fitted to them.
"""

from collections.abc import Iterable
from typing import NamedTuple

from longctx_jax.plan.collectives import Collective
from longctx_jax.plan.hlo import Program, Trips, uses
from longctx_jax.plan.topology import Chip

# No memory is touched by these, or another instruction counts it.
_FREE = frozenset(
  (
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
    *('while', 'conditional', 'call', 'call-start', 'call-done', 'call-update'),
    *('async-start', 'async-update', 'async-done', 'after-all', 'opt-barrier'),
    *('partition-id', 'replica-id', 'iota', 'copy-done', 'domain'),
  )
)


class StepTime(NamedTuple):
  """Seconds, predicted."""

  compute: float
  hbm: float
  ici: float
  dcn: float
  host: float = 0.0

  @property
  def bottleneck(self) -> str:
    """The name of the longest term."""
    return max(self._fields, key=lambda name: getattr(self, name))

  @property
  def step_s(self) -> float:
    """The longest term: what is left if all else is hidden."""
    return max(self)

  @property
  def unhidden_s(self) -> float:
    """If nothing is hidden behind anything else."""
    return sum(self)


def step_time(
  chip: Chip,
  num_chips: int,
  *,
  hardware_flops: float,
  hbm_bytes: float,
  sent: Iterable[Collective],
  host_bytes: float = 0.0,
) -> StepTime:
  """The terms of a step; bytes are of one chip, FLOPs of all."""
  sent = list(sent)
  return StepTime(
    compute=hardware_flops / num_chips / chip.peak_flops,
    hbm=hbm_bytes / chip.hbm_bytes_per_s,
    ici=sum(ici_seconds(one, chip) for one in sent if not one.crosses_slices),
    dcn=sum(one.bytes for one in sent if one.crosses_slices)
    / chip.dcn_bytes_per_s,
    host=host_bytes / chip.host_bytes_per_s,
  )


def ici_seconds(one: Collective, chip: Chip) -> float:
  """Time on the links, with a mesh axis laid as a ring through the chips.

  A ring has two links at each chip, one each way. A permute uses the one that
  it goes along. In an all-to-all a number travels a quarter of the ring on
  average, and takes up every link on its way. Axes that span several
  dimensions of a torus can do better than one ring.
  """
  if one.kind == 'collective-permute':
    return one.bytes / chip.ici_bytes_per_s
  both_ways = 2 * chip.ici_bytes_per_s
  if one.kind.endswith('all-to-all'):
    return one.bytes * max(one.group_size / 4, 1) / both_ways
  return one.bytes / both_ways


def hbm_bytes(program: Program, trips: Trips) -> float:
  """Bytes that the instructions of a step read from and write to HBM.

  Of a buffer that an instruction reads or writes a slice of, only the slice.
  Kernels count each operand once, however often they read it again.
  """
  total = 0.0
  for use in uses(program, trips):
    instruction = use.instruction
    if use.in_fusion or instruction.opcode in _FREE or not use.times:
      continue
    if instruction.opcode.endswith(('-done', '-update')):
      continue
    total += use.times * _touched(program, use)
  return total


def host_bytes(program: Program, trips: Trips) -> float:
  """Bytes that a step moves to the host's memory, or from it: the more of both.

  PCIe carries both ways at once.
  """
  to_host = from_host = 0.0
  for use in uses(program, trips):
    move = _move(program, use)
    if move:
      num_bytes, source, target = move
      to_host += use.times * num_bytes * (target.on_host > source.on_host)
      from_host += use.times * num_bytes * (source.on_host > target.on_host)
  return max(to_host, from_host)


def _move(program, use):
  """(bytes, source, target) of an instruction that only moves, or None."""
  instruction = use.instruction
  opcode, arrays = instruction.opcode.removesuffix('-start'), instruction.arrays
  operands = program.computations[use.computation]
  operand = (
    operands.get(instruction.operands[0]) if instruction.operands else None
  )
  if operand is None or not operand.arrays:
    return None
  if opcode == 'copy':
    return arrays[0].num_bytes, operand.arrays[0], arrays[0]
  if opcode in ('slice', 'dynamic-slice'):
    # Of a start: (operands, what comes, a flag).
    piece = arrays[0] if opcode == instruction.opcode else arrays[-2]
    return piece.num_bytes, operand.arrays[0], piece
  if opcode == 'dynamic-update-slice':
    update = operands[instruction.operands[1]].arrays[0]
    return update.num_bytes, update, operand.arrays[0]
  return None


def _touched(program, use):
  instruction = use.instruction
  computation = program.computations[use.computation]
  if move := _move(program, use):
    num_bytes, source, target = move
    return num_bytes * (source.in_hbm + target.in_hbm)
  operands = [computation.get(name) for name in instruction.operands]
  reads = [_in_hbm(x) if x else 0 for x in operands]
  writes = _in_hbm(instruction)
  opcode = instruction.opcode
  if opcode == 'gather':
    return 2 * writes
  if opcode == 'scatter':
    return 2 * reads[-1]
  if opcode.endswith('-start'):
    # The result names the operands again, beside what comes.
    return 2 * sum(reads)
  if opcode == 'fusion':
    return _touched_by_fusion(program, instruction, reads, writes)
  return sum(reads) + writes


def _touched_by_fusion(program, fusion, reads, writes):
  """A fusion may read slices of its operands, and write one of its result."""
  name = fusion.attributes.partition('calls=%')[2].partition(',')[0]
  inside = program.computations[name.split()[0]]
  users: dict[str, list] = {}
  for instruction in inside.values():
    for operand in instruction.operands:
      users.setdefault(operand, []).append(instruction)
  parameters = {
    int(x.operands[0]): x for x in inside.values() if x.opcode == 'parameter'
  }
  total = 0
  for i, read in enumerate(reads):
    its_users = users.get(parameters[i].name, []) if i in parameters else []
    if its_users and all(
      x.opcode in ('dynamic-slice', 'gather')
      or (
        x.opcode == 'dynamic-update-slice'
        and x.operands[0] == parameters[i].name
      )
      for x in its_users
    ):
      read = min(
        read,
        sum(
          0 if x.opcode == 'dynamic-update-slice' else x.num_bytes
          for x in its_users
        ),
      )
    total += read
  root = next(x for x in inside.values() if x.is_root)
  if root.opcode == 'bitcast':
    root = inside.get(root.operands[0], root)
  if root.opcode == 'dynamic-update-slice':
    update = inside.get(root.operands[1])
    writes = min(writes, update.num_bytes if update else writes)
  return total + writes


def _in_hbm(instruction):
  return sum(x.num_bytes for x in instruction.arrays if x.in_hbm)
