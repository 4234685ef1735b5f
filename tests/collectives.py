"""What a compiled program sends between devices."""

import math
import re
from typing import NamedTuple

import jax

BYTES = {'pred': 1, 'bf16': 2, 'f32': 4, 's32': 4, 'u32': 4}
KINDS = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'


class Collective(NamedTuple):
  """One instruction; `num_bytes` of its results on one device."""

  kind: str
  num_bytes: int
  in_loop: bool


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
  """All collectives of a program, each counted once even if it is in a loop."""
  found = []
  for computation in re.split(r'\n(?=%|ENTRY)', compiled.as_text()):
    for result, kind in re.findall(
      rf' = (.*?) ({KINDS})(?:-start)?\(', computation
    ):
      num_bytes = sum(
        BYTES[dtype] * math.prod(int(n) for n in shape.split(',') if n)
        for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', result)
      )
      in_loop = not computation.startswith('ENTRY')
      found.append(Collective(kind, num_bytes, in_loop))
  return found
