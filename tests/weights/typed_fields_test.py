"""Fields of other people's files: what is taken, what is said of others."""

import pytest

from longctx_jax.weights.tensor_table import WeightsError
from longctx_jax.weights.typed_fields import Fields

READERS = {
  'whole': Fields.whole,
  'number': Fields.number,
  'flag': Fields.flag,
  'text': Fields.text,
  'list_of': lambda fields, name: fields.list_of(name, str),
  'ids': Fields.ids,
  'section': lambda fields, name: dict(fields.section(name).values),
}


@pytest.mark.parametrize(
  ('reader', 'values'),
  [
    ('whole', [1, 2**31 - 1]),
    ('number', [0, 1.5, 10_000]),
    ('flag', [True, False]),
    ('text', ['', 'x']),
    ('list_of', [[], ['a', 'b']]),
    ('section', [{}, {'a': 1}]),
  ],
)
def test_a_field_of_the_right_kind_is_what_it_is(reader, values):
  for value in values:
    assert READERS[reader](Fields({'x': value}, 'F'), 'x') == value


def test_ids_are_one_several_or_none():
  found = [Fields({'x': x}, 'F').ids('x') for x in (5, [5, 7], [], None)]
  assert found == [(5,), (5, 7), (), ()]


@pytest.mark.parametrize(
  ('reader', 'values'),
  [
    ('whole', ['4', 1.0, True, 0, -1, 2**31, [2]]),
    ('number', ['1e-5', True, -1, float('nan'), float('inf'), 10**400]),
    ('flag', ['no', 0, 1, []]),
    ('text', [5, ['x'], {}]),
    ('list_of', ['abc', ['a', 1], {'a': 1}]),
    ('ids', ['</s>', ['</s>'], [True], -1, {}, 2**31]),
    ('section', ['yarn', [1], 3]),
  ],
)
def test_another_kind_is_refused_with_file_field_and_value(reader, values):
  for value in values:
    with pytest.raises(WeightsError, match=r'^F: x is .+, and should be ') as e:
      READERS[reader](Fields({'x': value}, 'F'), 'x')
    assert repr(value)[:40] in str(e.value)
    assert len(str(e.value)) < 130


def test_what_is_missing_is_its_default_if_it_has_one():
  for values in ({}, {'x': None}):
    assert Fields(values, 'F').whole('x', None) is None
    assert Fields(values, 'F').text('x', 'y') == 'y'
    with pytest.raises(
      WeightsError, match=r'^F: x is missing, and should be a'
    ):
      Fields(values, 'F').whole('x')


def test_a_field_inside_of_another_is_named_with_it():
  with pytest.raises(WeightsError, match=r"^F: rope\.base is 'big', and"):
    Fields({'rope': {'base': 'big'}}, 'F').section('rope').number('base')
