"""XLA's optimised program, read from its text: what runs, and how often.

XLA's own analysis counts the body of a loop once. Here every instruction has
the number of times it runs: the product of the trip counts of the loops around
it. XLA writes a trip count as a comparison of a counter that starts at a
constant; the hops of a ring are decided at run time, and are told apart by
their `named_scope` (`ops.ring_attention`).
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

DTYPE_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'f8e4m3fn': 1,
  'f8e5m2': 1,
  's16': 2,
  'u16': 2,
  'f16': 2,
  'bf16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
}
_ARRAY = re.compile(
  r'\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\](\{[^}]*\})?'
)
_INSTRUCTION = re.compile(r'\s*(ROOT )?%?([\w.-]+) = (.*)$')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_NAME = re.compile(r'%([\w.-]+)')
# Attributes that name the computations an instruction runs once.
_CALLED = re.compile(r'\b(?:calls|to_apply|called_computations)=\{?%([\w.-]+)')


class Array(NamedTuple):
  """One array of a shape; of a tuple's shape there are several."""

  dtype: str
  shape: tuple[int, ...]
  in_hbm: bool  # and not in VMEM, SMEM or on the host
  on_host: bool = False

  @property
  def num_bytes(self) -> int:
    """Without what a layout pads."""
    return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # of the result
  operands: tuple[str, ...]
  attributes: str  # all after the operands
  is_root: bool

  @property
  def num_bytes(self) -> int:
    """Of the result."""
    return sum(array.num_bytes for array in self.arrays)

  @property
  def op_name(self) -> str:
    """Where it comes from: 'jit(train_step)/while/body/...'."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''


class Program(NamedTuple):
  """Computations by name, each a list in the order of its schedule."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


class Use(NamedTuple):
  """An instruction of the program, and how it comes to run."""

  instruction: Instruction
  computation: str
  times: float
  in_fusion: str  # name of the fusion that it is part of, or ''


# The compiler moves a counter between memories as it pleases.
_COPIES = 'copy', 'copy-start', 'copy-done', 'bitcast'

# (loop) -> trips, of a loop whose trip count XLA does not know; None: unknown.
Trips = Callable[[Instruction], float | None]


def parse_program(text: str) -> Program:
  """Reads `compiled.as_text()`."""
  computations, entry = {}, ''
  for block in re.split(r'\n(?=%|ENTRY )', text):
    head = re.match(r'(ENTRY )?%?([\w.-]+) \(', block)
    if not head:
      continue
    body = (_parse_line(line) for line in block.splitlines()[1:])
    computations[head[2]] = {x.name: x for x in body if x}
    if head[1]:
      entry = head[2]
  if not entry:
    raise ValueError('not the text of a compiled program: it has no ENTRY')
  return Program(computations, entry)


def _parse_line(line) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  root, name, rest = found.groups()
  # Shapes hold parentheses of their own; an opcode follows a space.
  opcode = _OPCODE.search(' ' + rest)
  if not opcode:
    return None
  shape, after = rest[: opcode.start()], rest[opcode.end() - 1 :]
  operands, attributes = _split_operands(after)
  return Instruction(
    name,
    opcode[1],
    parse_arrays(shape),
    # A constant's value and a parameter's number are no names.
    (operands,)
    if opcode[1] in ('constant', 'parameter')
    else tuple(_NAME.findall(operands)),
    attributes,
    bool(root),
  )


def _split_operands(text):
  """'a, (b)), calls=...' -> 'a, (b)' and the rest."""
  depth = 1
  for i, character in enumerate(text):
    depth += {'(': 1, ')': -1}.get(character, 0)
    if not depth:
      return text[:i], text[i + 1 :]
  return text, ''


def parse_arrays(shape: str) -> tuple[Array, ...]:
  """'(f32[2,3]{1,0:T(8,128)S(1)}, u32[])' -> its arrays."""
  return tuple(
    Array(
      dtype,
      tuple(int(size) for size in sizes.split(',') if size),
      # S(0), which is not written, is HBM.
      'S(' not in layout,
      'S(5)' in layout,
    )
    for dtype, sizes, layout in _ARRAY.findall(shape)
    if dtype in DTYPE_BYTES
  )


def uses(program: Program, trips: Trips) -> Iterator[Use]:
  """Every instruction that runs, as often as it is written to.

  A loop of which nobody knows counts once (see `unknown_loops`), and so does
  each branch of such a conditional.
  """

  def visit(name, times, fusion):
    computation = program.computations[name]
    for instruction in computation.values():
      yield Use(instruction, name, times, fusion)
      opcode, attributes = instruction.opcode, instruction.attributes
      if opcode == 'while':
        body = re.search(r'body=%?([\w.-]+)', attributes)[1]
        count = _known_count(program, name, instruction, trips)
        yield from visit(body, times * (1 if count is None else count), fusion)
      elif opcode == 'conditional':
        branches = _branches(attributes)
        count = trips(_with_name(program, instruction, branches))
        for i, branch in enumerate(branches):
          # A condition that `trips` knows is False or True: 0 or 1.
          taken = 1 if count is None else float(i == int(count > 0))
          yield from visit(branch, times * taken, fusion)
      elif opcode in ('fusion', 'call', 'call-start', 'async-start'):
        called = _CALLED.search(attributes)[1]
        inside = fusion or (instruction.name if opcode == 'fusion' else '')
        yield from visit(called, times, inside)

  yield from visit(program.entry, 1.0, '')


def unknown_loops(program: Program, trips: Trips) -> list[str]:
  """Names, as in the source, of the loops of which nobody knows the trips."""
  return [
    use.instruction.op_name or use.instruction.name
    for use in uses(program, trips)
    if use.instruction.opcode == 'while'
    and _known_count(program, use.computation, use.instruction, trips) is None
  ]


def _known_count(program, computation, loop, trips):
  count = trip_count(program, computation, loop)
  return trips(loop) if count is None else count


def _with_name(program, conditional, branches):
  """With the source's name again, where XLA made one conditional of several.

  What is in a branch keeps it: .../ring_down/cond/branch_1_fun/while.
  """
  if conditional.op_name.endswith('/cond'):
    return conditional
  for branch in branches:
    for instruction in program.computations[branch].values():
      name, in_branch, _ = instruction.op_name.partition('/branch_')
      if in_branch:
        return conditional._replace(attributes=f'metadata={{op_name="{name}"}}')
  return conditional


def _branches(attributes):
  if found := re.search(r'branch_computations=\{([^}]*)\}', attributes):
    return _NAME.findall(found[1])
  return [
    re.search(rf'{which}_computation=%?([\w.-]+)', attributes)[1]
    for which in ('false', 'true')
  ]


def trip_count(
  program: Program, computation: str, loop: Instruction
) -> int | None:
  """How often a while loop runs, if that is written in the program.

  The counter is the number compared; where it starts is in the loop's operand,
  and how it grows in the body.
  """
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.-]+)', loop.attributes)[1]
  body = re.search(r'body=%?([\w.-]+)', loop.attributes)[1]
  root = _root(program.computations[condition])
  if root.opcode != 'compare' or 'direction=LT' not in root.attributes:
    return None
  inside = program.computations[condition]
  counter, limit = (_original(inside, name) for name in root.operands)
  index = _tuple_index(counter)
  if index is None:
    return None
  at_start = _at_start(program, computation, loop, index)
  end = _constant(limit)
  if end is None and (where := _tuple_index(limit)) is not None:
    end = _at_start(program, computation, loop, where)
  step = _step(program.computations[body], index)
  if None in (at_start, end, step):
    return None
  return max(0, -(-(end - at_start) // step))


def _root(computation):
  return next(x for x in computation.values() if x.is_root)


def _tuple_index(instruction):
  """Which element of the loop's state an instruction reads, or None."""
  if instruction is None or instruction.opcode != 'get-tuple-element':
    return None
  return int(re.search(r'index=(\d+)', instruction.attributes)[1])


def _original(computation, name):
  """The instruction of which this one is a copy, or itself."""
  instruction = computation.get(name)
  while instruction is not None and instruction.opcode in _COPIES:
    instruction = computation.get(instruction.operands[0])
  return instruction


def _constant(instruction):
  """The integer that an instruction is, or None."""
  if instruction is None or instruction.opcode != 'constant':
    return None
  value = instruction.operands[0]
  return int(value) if re.fullmatch(r'-?\d+', value) else None


def _at_start(program, computation, loop, index):
  inside = program.computations[computation]
  state = inside.get(loop.operands[0])
  if state is None or state.opcode != 'tuple':
    return None
  return _constant(_original(inside, state.operands[index]))


def _step(body, index):
  """By what the body makes element `index` of its state grow."""
  root = _root(body)
  if root.opcode != 'tuple':
    return None
  grown = _original(body, root.operands[index])
  if grown is None or grown.opcode != 'add':
    return None
  for one, other in (grown.operands, grown.operands[::-1]):
    if _tuple_index(_original(body, one)) == index:
      return _constant(_original(body, other))
  return None
