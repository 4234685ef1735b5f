"""What a compiled step sends between chips, by kind and by mesh axis.

Bytes are those that one chip sends in one step. Of n chips that each end with b
bytes, or begin with them, a chip sends

  all-gather, reduce-scatter, all-to-all   (n-1)/n of b, the whole array
  all-reduce                               twice that: scattered, then gathered
  collective-permute                       b

which is what a ring sends, and the least that there is to send. Between slices
of TPUs there are no collectives any more in the program: what hosts are to do
over the network stands at the `send` that hands them the data.
"""

import collections
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from longctx_jax.plan.hlo import Program, Trips, Use, uses

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
  'collective-permute',
)


class Collective(NamedTuple):
  """All of one kind over the same axes, in one step."""

  kind: str
  axis: str  # 'context', or 'fsdp+context'
  group_size: int
  count: float
  bytes: float  # sent by one chip
  crosses_slices: bool


def collectives(
  program: Program,
  trips: Trips,
  axis_sizes: dict[str, int],
  slice_of: np.ndarray,
) -> list[Collective]:
  """The collectives of a step, most bytes first.

  Args:
    program: the step.
    trips: of loops whose number is decided at run time.
    axis_sizes: the mesh: its axes in order, with their sizes.
    slice_of: the slice of each device, in the order of the mesh.
  """
  totals: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0])
  for use in _once(uses(program, trips)):
    kind = _kind(use.instruction.opcode)
    groups = replica_groups(use.instruction.attributes, slice_of.size)
    axis = axes_of(groups, axis_sizes)
    if not axis:
      continue
    size = max(map(len, groups)) if kind != 'collective-permute' else 2
    crosses = any(len({*slice_of[list(group)]}) > 1 for group in groups)
    sent = _sent(kind, use, size)
    total = totals[kind, axis, size, crosses]
    total[0] += use.times
    total[1] += use.times * sent
  axis, size = _across_slices(axis_sizes, slice_of)
  for use in uses(program, trips):
    kind = _kind_by_hosts(use.instruction)
    if kind:
      total = totals[kind, axis, size, True]
      total[0] += use.times
      total[1] += use.times * _sent_by_hosts(kind, use.instruction, size)
  found = [
    Collective(kind, axis, size, count, sent, crosses)
    for (kind, axis, size, crosses), (count, sent) in totals.items()
    if count
  ]
  return sorted(found, key=lambda one: -one.bytes)


def _kind(opcode):
  kind = opcode.removesuffix('-start')
  return kind if kind in KINDS else ''


def _once(all_uses: Iterable[Use]) -> Iterable[Use]:
  """Collectives; one that is spread over fusions, only where it starts.

  TPUs run work inside of the fusions that a collective begins and ends with,
  and each of these holds a copy of it.
  """
  seen = set()
  for use in all_uses:
    if not _kind(use.instruction.opcode):
      continue
    channel = re.search(r'channel_id=(\d+)', use.instruction.attributes)
    if use.in_fusion and channel:
      if channel[1] in seen:
        continue
      seen.add(channel[1])
    yield use


def _sent(kind, use, n):
  arrays = use.instruction.arrays
  started = use.instruction.opcode.endswith('-start')
  if kind == 'collective-permute':
    # A start's result is (sent, received, flags, ...).
    return arrays[0].num_bytes
  if kind == 'all-gather' and started:
    arrays = arrays[len(arrays) // 2 :]  # (inputs, outputs)
  whole = sum(array.num_bytes for array in arrays)
  if kind == 'reduce-scatter':
    whole *= n  # the result is a share
  share = whole * (n - 1) / n
  return 2 * share if kind == 'all-reduce' else share


def _across_slices(axis_sizes, slice_of):
  """The axes along which the slice changes, and how many slices there are."""
  grid = np.reshape(slice_of, tuple(axis_sizes.values()))
  axes = [
    axis
    for i, axis in enumerate(axis_sizes)
    if (grid != np.take(grid, [0], axis=i)).any()
  ]
  return '+'.join(axes), np.unique(slice_of).size


def _kind_by_hosts(instruction):
  """What the hosts make of a `send`, or '' of anything else."""
  found = instruction.opcode == 'send' and re.search(
    r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes
  )
  return found[1].lower().replace('_', '-') if found else ''


def _sent_by_hosts(kind, instruction, n):
  """As of one collective over n slices; a chip hands over what it has."""
  whole = instruction.arrays[0].num_bytes
  if kind == 'all-gather':
    return whole * (n - 1)  # to each of the others
  share = whole * (n - 1) / n
  if kind == 'all-reduce':
    return 2 * share
  return share if kind in ('reduce-scatter', 'all-to-all') else whole


def replica_groups(attributes: str, num_devices: int) -> list[tuple[int, ...]]:
  """Who takes part together, in any of the ways that XLA writes it.

  {{0,1},{2,3}}                            as they are
  [2,2]<=[4]                               0 1 2 3 in rows of 2
  [2,2]<=[2,2]T(1,0)                       the same, transposed before
  mesh['a'=2,'b'=2] {'b'}                  those that differ in b alone
  source_target_pairs={{0,1},{1,0}}        each pair is a group
  """
  pairs = re.search(r'source_target_pairs=\{(\{.*?\})\}', attributes)
  if pairs:
    return [
      tuple(int(i) for i in pair.split(','))
      for pair in re.findall(r'\{([\d,]+)\}', pairs[1])
    ]
  if mesh := re.search(
    r'replica_groups=@?\w*mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\]\))?'
    r' \{([^}]*)\}',
    attributes,
  ):
    sizes = {
      name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])
    }
    ids = (
      np.array([int(i) for i in mesh[2].split(',')])
      if mesh[2]
      else np.arange(num_devices)
    )
    together = re.findall(r"'(\w+)'", mesh[3])
    apart = [name for name in sizes if name not in together]
    order = [list(sizes).index(name) for name in (*apart, *together)]
    grid = ids.reshape(list(sizes.values())).transpose(order)
    rows = int(np.prod([sizes[name] for name in apart], dtype=int))
    return [tuple(group) for group in grid.reshape(rows, -1).tolist()]
  if iota := re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
  ):
    shape, grid = (
      [int(i) for i in part.split(',')] for part in (iota[1], iota[2])
    )
    ids = np.arange(np.prod(grid)).reshape(grid)
    if iota[3]:
      ids = ids.transpose([int(i) for i in iota[3].split(',')])
    return [tuple(group) for group in ids.reshape(shape).tolist()]
  if listed := re.search(r'replica_groups=\{(\{.*?\})\}', attributes):
    return [
      tuple(int(i) for i in group.split(','))
      for group in re.findall(r'\{([\d,]+)\}', listed[1])
    ]
  return [tuple(range(num_devices))]


def axes_of(
  groups: Iterable[tuple[int, ...]], axis_sizes: dict[str, int]
) -> str:
  """The mesh axes along which members of a group differ: 'fsdp+context'."""
  shape = tuple(axis_sizes.values())
  varies = np.zeros(len(shape), bool)
  for group in groups:
    at = np.stack(np.unravel_index(np.array(group), shape))
    varies |= (at != at[:, :1]).any(axis=1)
  return '+'.join(
    axis for axis, differs in zip(axis_sizes, varies, strict=True) if differs
  )
