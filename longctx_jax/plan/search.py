"""Meshes and remat policies on which a stage fits, the fastest first."""

import math
from collections.abc import Iterator

from longctx_jax import sharding
from longctx_jax.config import ConfigError, StageConfig
from longctx_jax.plan.plan_stage import Plan, plan_stage, with_choice
from longctx_jax.plan.topology import topology_devices

# From what computes least twice to what keeps least. 'offload' computes as much
# as 'full', and waits for the host's memory beside.
REMAT = ('none', 'dots', 'attention', 'full', 'offload')


def meshes(config: StageConfig, topology: str) -> list[dict[str, int]]:
  """Every mesh of the chips over which the stage's sizes divide.

  Those with the least that has to be sent in each layer come first: without
  `tensor`, and with as few parts of a row as the rows of a batch allow.
  """
  num_slices = config.mesh.slices
  devices = topology_devices(topology, num_slices)
  found = []
  for data, fsdp, context, tensor in _factors(len(devices), 4):
    axes = dict(zip(sharding.AXES, (data, fsdp, context, tensor), strict=True))
    choice = with_choice(config, axes, config.model.remat)
    try:
      sharding.check_divisible(choice, sharding.make_mesh(choice.mesh, devices))
    except ConfigError:
      continue
    found.append(axes)
  return sorted(found, key=lambda a: (a['tensor'], a['context'], a['data']))


def _factors(n: int, parts: int) -> Iterator[tuple[int, ...]]:
  """(a, b, ...) of which the product is n."""
  if parts == 1:
    yield (n,)
    return
  for first in range(1, n + 1):
    if n % first == 0:
      for rest in _factors(n // first, parts - 1):
        yield (first, *rest)


def search(
  config: StageConfig,
  topology: str,
  *,
  document_len: int = 0,
  num_meshes: int,
) -> Iterator[Plan]:
  """Plans of the first meshes, with the first remat policy that fits on each.

  A policy that keeps less is slower where one that keeps more fits, and is not
  compiled there. What does not fit at all comes as its last plan.
  """
  for mesh in meshes(config, topology)[:num_meshes]:
    plan = None
    for remat in REMAT:
      plan = plan_stage(
        with_choice(config, mesh, remat),
        topology,
        document_len=document_len,
      )
      if plan.memory.fits:
        break
    yield plan


def best_first(plans: list[Plan]) -> list[Plan]:
  """Those that fit, by predicted time; then the others, by what they lack."""
  fitting = sorted(
    (plan for plan in plans if plan.memory.fits),
    key=lambda p: p.time.step_s if p.time else math.inf,
  )
  others = sorted(
    (plan for plan in plans if not plan.memory.fits),
    key=lambda p: p.memory.total,
  )
  return fitting + others
