"""Reading XLA's text: what runs, how often, and in which memory."""

import pytest

from longctx_jax.plan.hlo import (
  parse_arrays,
  parse_program,
  unknown_loops,
  uses,
)

# Two layers' loop around a loop of three hops around one permute; a loop whose
# end is known at run time; a branch; and a fusion.
PROGRAM = """\
HloModule step, is_scheduled=true

%hop_body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[4]{0} get-tuple-element(%p.1), index=1
  %two = s32[]{:T(128)} constant(2)
  %next.1 = s32[]{:T(128)} add(%i.1, %two)
  %move = f32[4]{0} negate(%x.1)
  ROOT %t.1 = (s32[]{:T(128)}, f32[4]{0}) tuple(%next.1, %move)
}

%hop_condition (p.2: (s32[], f32[4])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %six = s32[]{:T(128)} constant(6)
  ROOT %lt.1 = pred[] compare(%i.2, %six), direction=LT
}

%layer_body (p.3: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {
  %p.3 = (s32[], f32[4]{0}, s32[]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %x.3 = f32[4]{0} get-tuple-element(%p.3), index=1
  %n.3 = s32[] get-tuple-element(%p.3), index=2
  %one = s32[] constant(1)
  %next.3 = s32[] add(%one, %i.3)
  %hops = (s32[], f32[4]{0}) tuple(%one, %x.3)
  %inner = (s32[], f32[4]{0}) while(%hops), condition=%hop_condition, \
body=%hop_body
  %y.3 = f32[4]{0} get-tuple-element(%inner), index=1
  ROOT %t.3 = (s32[], f32[4]{0}, s32[]) tuple(%next.3, %y.3, %n.3)
}

%layer_condition (p.4: (s32[], f32[4], s32[])) -> pred[] {
  %p.4 = (s32[], f32[4]{0}, s32[]) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  %n.4 = s32[] get-tuple-element(%p.4), index=2
  ROOT %lt.4 = pred[] compare(%i.4, %n.4), direction=LT
}

%yes (p.5: f32[4]) -> f32[4] {
  %p.5 = f32[4]{0} parameter(0)
  ROOT %sine = f32[4]{0} sine(%p.5)
}

%no (p.6: f32[4]) -> f32[4] {
  ROOT %p.6 = f32[4]{0} parameter(0)
}

%fused (p.7: f32[4]) -> f32[4] {
  %p.7 = f32[4]{0} parameter(0)
  ROOT %cosine = f32[4]{0} cosine(%p.7)
}

ENTRY %main (x: f32[4], n: s32[], b: s32[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %n = s32[] parameter(1)
  %b = s32[] parameter(2)
  %zero = s32[] constant(0)
  %layers = s32[] constant(2)
  %start = (s32[], f32[4]{0}, s32[]) tuple(%zero, %x, %layers)
  %known = (s32[], f32[4]{0}, s32[]) while(%start), \
condition=%layer_condition, body=%layer_body
  %y = f32[4]{0} get-tuple-element(%known), index=1
  %asked = (s32[], f32[4]{0}, s32[]) tuple(%zero, %y, %n)
  %unknown = (s32[], f32[4]{0}, s32[]) while(%asked), \
condition=%layer_condition, body=%layer_body, \
metadata={op_name="jit(f)/ring_up/while"}
  %z = f32[4]{0} get-tuple-element(%unknown), index=1
  %either = f32[4]{0} conditional(%b, %z, %z), \
branch_computations={%no, %yes}
  ROOT %out = f32[4]{0} fusion(%either), kind=kLoop, calls=%fused
}
"""


def times(trips):
  return times_in(PROGRAM, trips)


def times_in(text, trips):
  found = {}
  for use in uses(parse_program(text), trips):
    name = use.instruction.name
    found[name] = found.get(name, 0) + use.times
  return found


def test_an_instruction_runs_as_often_as_the_loops_around_it():
  # Hops count 1 3 5 to 6; two layers, and then layers that nobody knows of.
  got = times(lambda _: None)
  assert got['y.3'] == 2 + 1
  assert got['move'] == 3 * (2 + 1)
  assert got['cosine'] == 1


def test_loops_and_branches_run_as_often_as_is_told_of_them():
  def trips(instruction):
    if instruction.opcode == 'conditional':
      return 0
    return 10 if 'ring_up' in instruction.op_name else None

  got = times(trips)
  assert got['move'] == 3 * (2 + 10)
  assert got['sine'] == 0
  assert times(lambda x: x.opcode == 'conditional' or None)['sine'] == 1


def test_a_loop_of_which_nobody_knows_is_named():
  program = parse_program(PROGRAM)
  assert unknown_loops(program, lambda _: None) == ['jit(f)/ring_up/while']
  assert unknown_loops(program, lambda _: 1.0) == []


def test_a_counter_is_known_through_copies():
  """libtpu keeps counters in scalar memory, where a program is large."""
  copied = PROGRAM
  for line, back in (
    ('%next.1 = s32[]{:T(128)} add(%i.1, %two)', '%i.1'),
    ('ROOT %lt.1 = pred[] compare(%i.2, %six)', '%i.2'),
    ('%next.3 = s32[] add(%one, %i.3)', '%one'),
    ('%start = (s32[], f32[4]{0}, s32[]) tuple(%zero,', '%zero'),
  ):
    assert line in copied
    there = f'{back}.copy = s32[]{{:T(128)S(6)}} copy({back})\n  '
    copied = copied.replace(line, there + line.replace(back, f'{back}.copy'))
  got = times_in(copied, lambda _: None)
  assert {name: got[name] for name in times(lambda _: None)} == times(
    lambda _: None
  )


def test_a_branch_says_what_its_conditional_is_called():
  """XLA made one conditional of several, and forgot what they were called."""
  name = 'jit(f)/ring_down/cond/branch_1_fun/sin'
  program = PROGRAM.replace(
    'sine(%p.5)', f'sine(%p.5), metadata={{op_name="{name}"}}'
  )
  asked = []

  def trips(instruction):
    if instruction.opcode == 'conditional':
      asked.append(instruction.op_name)
      return 0.0
    return None

  times_in(program, trips)
  assert asked == ['jit(f)/ring_down/cond']


def test_what_is_in_a_fusion_says_so():
  inside = {
    use.instruction.name: use.in_fusion
    for use in uses(parse_program(PROGRAM), lambda _: None)
  }
  assert inside['cosine'] == 'out'
  assert inside['move'] == inside['out'] == ''


def test_arrays_of_a_shape_know_their_bytes_and_their_memory():
  arrays = parse_arrays(
    '(bf16[2,512]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, pred[7]{0}, token[])'
  )
  assert [array.num_bytes for array in arrays] == [2048, 4, 7]
  assert [array.in_hbm for array in arrays] == [False, True, True]


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    parse_program('HloModule nothing')
