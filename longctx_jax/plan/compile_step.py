"""A stage's real train step, compiled for chips that are not there.

No parameter is ever made: the step is traced and compiled from shapes, dtypes
and places. A step that is too large is an answer, with its figures.
"""

import importlib.metadata
import math
import re
import time
from typing import Any, NamedTuple

import jax

from longctx_jax import sharding
from longctx_jax.config import ConfigError, StageConfig
from longctx_jax.plan.topology import GIB, Chip, quiet_libtpu
from longctx_jax.train_step import (
  abstract_batch,
  abstract_state,
  make_train_step,
)


class Memory(NamedTuple):
  """Bytes on one chip, as the compiler lays them out."""

  arguments: int  # parameters, optimizer state and the batch
  temporaries: int
  outputs: int
  aliased: int  # outputs in the place of arguments: the updated state
  total: int  # at the peak, which is what has to be free
  capacity: int

  @property
  def fits(self) -> bool:
    """Whether a program of this size can be loaded."""
    return self.total <= self.capacity


class CompiledStep(NamedTuple):
  """What the compiler makes of a step; there may be no `text` to go on."""

  memory: Memory
  jaxpr: Any  # of the step, before it is split over chips
  text: str  # the optimised program
  problem: str  # why there is no text
  cost: dict[str, float]  # XLA's own analysis; it counts loop bodies once
  seconds: float


def compile_step(
  config: StageConfig, mesh: jax.sharding.Mesh, chip: Chip
) -> CompiledStep:
  """Compiles the stage's step for `mesh`.

  Raises:
    ConfigError: sizes that don't fit the mesh, or a step that does not compile
      for another reason than its size.
  """
  sharding.check_divisible(config, mesh)
  state, batch = abstract_state(config, mesh), abstract_batch(config, mesh)
  began = time.monotonic()
  traced = make_train_step(config, mesh).trace(state, batch)
  with quiet_libtpu():
    try:
      compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      memory = memory_of_refusal(
        str(error), arguments=_bytes_on_a_chip((state, batch))
      )
      if memory is None:
        raise ConfigError(
          f'{config.name} does not compile for {chip.name}:'
          f' {_first_line(error)}'
        ) from error
      seconds = time.monotonic() - began
      problem = 'nothing is predicted of what does not fit'
      return CompiledStep(memory, traced.jaxpr, '', problem, {}, seconds)
    text, problem = _text(compiled)
  memory = memory_of_program(compiled.memory_analysis(), chip.hbm_bytes)
  cost = {
    name: float(value)
    for name, value in compiled.cost_analysis().items()
    if name in ('flops', 'bytes accessed')
  }
  seconds = time.monotonic() - began
  return CompiledStep(memory, traced.jaxpr, text, problem, cost, seconds)


def memory_of_program(analysis: Any, capacity: int) -> Memory:
  """Figures of a program that fits, out of XLA's analysis of its memory.

  Temporaries are what the peak leaves. The figure of that name is too large
  with some versions of libtpu: 0.0.42 says 11.38 GB of Llama-3-8B at 64K tokens
  on eight v5p, and sets 7.47 GB apart (`preallocated-temp` in a dump of its
  buffers); 0.0.52 says 7.59 GB. By the peak, 7.42 and 7.49 GB.
  """
  arguments, outputs, aliased = (
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
  )
  held = arguments + outputs - aliased
  peak = analysis.peak_memory_in_bytes
  temporaries = peak - held if peak else analysis.temp_size_in_bytes
  return Memory(
    arguments=arguments,
    temporaries=temporaries,
    outputs=outputs,
    aliased=aliased,
    total=held + temporaries,
    capacity=capacity,
  )


def memory_of_refusal(message: str, *, arguments: int) -> Memory | None:
  """Figures out of XLA's refusal of a program that is too large, or None.

  What it calls temporaries includes the arguments. Outputs take the place of
  arguments, but for a few numbers.
  """
  found = re.search(
    r'Ran out of memory on HBM.*?\(([\d.]+)([KMG])\) exceeds available HBM'
    r' \(([\d.]+)([KMG])\)',
    message,
    re.DOTALL,
  ) or re.search(
    r'Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm', message, re.DOTALL
  )
  if not found:
    return None
  total, capacity = (
    int(float(number) * {'K': 2**10, 'M': 2**20, 'G': GIB}[unit])
    for number, unit in (found.groups()[:2], found.groups()[2:])
  )
  return Memory(
    arguments=arguments,
    temporaries=total - arguments,
    outputs=arguments,
    aliased=arguments,
    total=total,
    capacity=capacity,
  )


def _bytes_on_a_chip(tree):
  total = 0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.sharding.shard_shape(leaf.shape)
    total += leaf.dtype.itemsize * math.prod(shape)
  return total


def _text(compiled):
  """The optimised program; '' and why not if this jaxlib cannot read it."""
  try:
    return compiled.as_text(), ''
  except jax.errors.JaxRuntimeError:
    installed = importlib.metadata.version('libtpu')
    return '', (
      f'jaxlib {jax.lib.__version__} cannot read what libtpu {installed} wrote,'
      " so nothing is predicted: pip install 'longctx_jax[plan]' takes the one"
      ' that it is made for'
    )


def _first_line(error):
  return str(error).strip().splitlines()[0]
