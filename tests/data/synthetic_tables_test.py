"""Properties of tables, questions and conversations.

That the answers are right is proven in synthetic_tables_oracle_test.py.
"""

import collections
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data import synthetic_tables as tables
from longctx_jax.data import table_values

# What each layout claims to offer: with two columns, and with four or more.
FEW = {'retrieve', 'filter', 'count', 'position', 'absent'}
OFFERED = {
  ('plain', 2, False): {'retrieve', 'position', 'absent'},
  ('plain', 2, True): {'retrieve', 'position', 'absent', 'sort'},
  ('annotated', 2, False): {'retrieve', 'position', 'absent'},
  ('annotated', 2, True): {'retrieve', 'position', 'absent', 'sort'},
}
LISTS = ('plain', 'annotated')
for _layout in ('markdown', 'csv', 'json'):
  OFFERED[_layout, 2, False] = FEW
  OFFERED[_layout, 3, False] = FEW | {'retrieve_row', 'sum', 'sort'}
  for _num_columns in range(4, 10):
    OFFERED[_layout, _num_columns, False] = set(tables.TASKS)

CASES = [(*kind, task) for kind, tasks in OFFERED.items() for task in tasks]
CASES.sort()


def make(kind, seed=0, num_rows=7):
  layout, num_columns, plain_numbers = kind
  return tables.make_table(
    np.random.default_rng(seed),
    num_rows=num_rows,
    layout=layout,
    num_columns=num_columns,
    plain_numbers=plain_numbers,
  )


def converse(seed, layout, tasks, num_rows=12, num_questions=8, **kwargs):
  return tables.make_conversation(
    np.random.default_rng(seed),
    tasks=tasks,
    layouts={layout: 1.0},
    num_rows=num_rows,
    num_questions=num_questions,
    **kwargs,
  )


# Tables ----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
  # At 3,000 rows the repeated values outnumber their list.
  num_rows=st.one_of(st.integers(1, 40), st.just(3_000)),
  seed=st.integers(0, 2**32),
)
def test_columns_keep_what_their_tasks_rely_on(num_rows, seed):
  table = make(('csv', 4, False), seed, num_rows)
  cells = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
  [repeated] = set(cells) & {'city', 'company', 'street'}
  [number] = set(cells) & {'units', 'points', 'price'}
  [link] = set(cells) & {'manager', 'deputy', 'mentor'}
  sizes = collections.Counter(cells[repeated]).values()
  assert max(sizes) <= 8
  assert min(sizes) <= 4
  assert len({int(n) for n in cells[number]}) == num_rows
  assert set(cells[link]) <= set(cells['name'])
  if num_rows > 1:
    assert all(a != b for a, b in zip(cells['name'], cells[link], strict=True))


@pytest.mark.parametrize(
  'kind', [('csv', 4, False), ('plain', 2, False), ('annotated', 2, False)]
)
def test_keys_are_unique_in_20_000_rows(kind):
  table = make(kind, num_rows=20_000)
  assert len({row[0] for row in table.rows}) == 20_000


def test_word_lists_hold_distinct_values_without_separators():
  for name, values in table_values.word_lists().items():
    assert len(set(values)) == len(values), name
    assert not re.search(r'[|;=\n]', ' '.join(values)), name
    assert all(value == value.strip() for value in values), name


def test_keys_of_plain_tables_are_not_values_too():
  lists = table_values.word_lists()
  for column in ('colour', 'month', 'word'):
    assert not set(lists['name']) & set(lists[column])


def test_impossible_tables_are_refused():
  with pytest.raises(ValueError, match="unknown layout 'html'"):
    make(('html', 4, False))
  for layout in LISTS:
    with pytest.raises(ValueError, match=f"'{layout}' table has 2 .*, got 3"):
      make((layout, 3, False))
  with pytest.raises(ValueError, match='2 to 9 columns, got 10'):
    make(('csv', 10, False))
  for num_rows in (0, table_values.MAX_ROWS + 1):
    with pytest.raises(ValueError, match=f'got {num_rows}'):
      make(('csv', 2, False), num_rows=num_rows)


@pytest.mark.parametrize('chars', [1_000, 4_000, 11_000, 100_000])
@pytest.mark.parametrize('layout', tables.LAYOUTS)
def test_estimated_rows_print_to_the_length_asked_for(layout, chars):
  num_rows = tables.estimate_rows(layout, 6, chars)
  kind = (layout, 2 if layout in LISTS else 6, False)
  texts = [make(kind, seed, num_rows).text for seed in range(80)]
  assert np.mean([len(text) for text in texts]) == pytest.approx(chars, rel=0.2)


# Questions -------------------------------------------------------------------


@pytest.mark.parametrize('kind', OFFERED)
def test_a_table_offers_the_tasks_its_layout_claims(kind):
  table = make(kind)
  assert set(tables.offered_tasks(table.columns)) == OFFERED[kind]
  for task in tables.TASKS:
    if task in OFFERED[kind]:
      assert tables.ask(np.random.default_rng(0), table, task).task == task
    else:
      with pytest.raises(ValueError, match=f'does not offer the task {task!r}'):
        tables.ask(np.random.default_rng(0), table, task)


@pytest.mark.parametrize('num_rows', [1, 192, 193])
@pytest.mark.parametrize('layout', tables.LAYOUTS)
def test_absent_keys_are_not_in_the_table_but_look_alike(layout, num_rows):
  table = make((layout, 2, False), num_rows=num_rows)
  present = {row[0] for row in table.rows}
  shapes = {re.sub(r'\w+', 'w', key) for key in present}
  rng = np.random.default_rng(1)
  for _ in range(100):
    question = tables.ask(rng, table, 'absent')
    key = question.text.removeprefix(f'{table.columns[1]} of ')
    assert key not in present
    assert re.sub(r'\w+', 'w', key) in shapes
    assert question.answer == 'none'
    assert question.row == -1


@pytest.mark.parametrize('task', ['retrieve', 'retrieve_row', 'position'])
def test_a_retrieval_names_the_row_of_its_evidence(task):
  table = make(('csv', 6, False))
  for row, cells in enumerate(table.rows):
    question = tables.ask(np.random.default_rng(row), table, task, row)
    assert question.row == row
    assert set(question.answer.split('; ')) <= set(cells)
    assert question.text.endswith(
      f'row {row + 1}' if task == 'position' else f' of {cells[0]}'
    )


@pytest.mark.parametrize('task', ['filter', 'count', 'sum', 'join', 'sort'])
def test_a_question_of_several_rows_names_none(task):
  table = make(('csv', 6, False))
  assert tables.ask(np.random.default_rng(0), table, task).row == -1


def test_a_filter_lists_at_most_four_keys():
  table = make(('csv', 2, False), num_rows=60)
  lengths = set()
  for row in range(60):
    question = tables.ask(np.random.default_rng(0), table, 'filter', row)
    lengths.add(len(question.answer.split('; ')))
  assert lengths <= {1, 2, 3, 4}
  assert len(lengths) > 1


def test_check_answer_ignores_case_and_white_space_alone():
  question = tables.Question('sort', 'x', 'Alice Smith; Bob', -1)
  assert tables.check_answer(question, ' alice  SMITH ;Bob\n')
  for response in ('', 'Alice Smith', 'AliceSmith; Bob', 'Bob; Alice Smith'):
    assert not tables.check_answer(question, response)


def test_check_answer_takes_any_order_where_the_question_says_so():
  text = 'names in any order where city = Rome'
  question = tables.Question('filter', text, 'Alice; Bob; Bob 2', -1)
  assert tables.check_answer(question, 'Bob 2; Alice; Bob')
  assert not tables.check_answer(question, 'Bob; Alice; Bob')
  assert not tables.check_answer(question, 'Alice; Bob')
  assert not tables.check_answer(question, 'Alice; Bob; Bob 2; Bob')


@pytest.mark.parametrize('case', CASES)
def test_check_answer_accepts_the_answer_and_no_changed_one(case):
  *kind, task = case
  question = tables.ask(np.random.default_rng(0), make(kind), task)
  assert tables.check_answer(question, question.answer)
  assert tables.check_answer(question, f'  {question.answer.upper()}\n')
  assert not tables.check_answer(question, question.answer + 'x')
  assert not tables.check_answer(question, question.answer[1:])


# Conversations ---------------------------------------------------------------

SCRIPT = """
import hashlib, numpy as np
from longctx_jax.data import synthetic_tables as tables
for seed in {seeds}:
  for layout in {layouts}:
    made = tables.make_conversation(
      np.random.default_rng(seed), tasks=dict.fromkeys(tables.TASKS, 1.0),
      layouts={{layout: 1.0}}, num_rows=9, num_questions=9, num_columns=9)
    digest = hashlib.sha256(repr(made).encode()).hexdigest()
    print(seed, layout, digest)
"""


def test_a_conversation_is_the_same_in_another_process_and_order():
  seeds, layouts = [0, 1, 2], sorted(tables.LAYOUTS)
  outputs = []
  for step, hash_seed in ((1, '1'), (-1, '2')):
    script = SCRIPT.format(seeds=seeds[::step], layouts=layouts[::step])
    run = subprocess.run(
      [sys.executable, '-c', script],
      env={'PYTHONPATH': ':'.join(sys.path), 'PYTHONHASHSEED': hash_seed},
      capture_output=True,
      text=True,
      check=True,
    )
    outputs.append(sorted(run.stdout.splitlines()))
  assert outputs[0] == outputs[1]
  assert len(set(outputs[0])) == len(seeds) * len(layouts)


def test_the_order_of_the_weights_does_not_matter():
  tasks = {'retrieve': 1.0, 'count': 2.0, 'absent': 1.0}
  layouts = {'csv': 1.0, 'json': 1.0, 'markdown': 1.0}
  for seed in range(5):
    made = [
      tables.make_conversation(
        np.random.default_rng(seed),
        tasks=dict(list(tasks.items())[::step]),
        layouts=dict(list(layouts.items())[::step]),
        num_rows=5,
        num_questions=5,
      )
      for step in (1, -1)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize('layout', tables.LAYOUTS)
def test_every_row_is_asked_once_before_any_comes_again(layout):
  _, questions = converse(0, layout, {'retrieve': 1.0}, 12, 24)
  rows = [question.row for question in questions]
  assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
  assert rows[:12] != list(range(12))


def test_tasks_and_layouts_come_by_weight():
  tasks = {'retrieve': 3.0, 'sum': 1.0, 'join': 0.0}
  _, questions = converse(0, 'json', tasks, 50, 2_000)
  counts = collections.Counter(question.task for question in questions)
  assert set(counts) == {'retrieve', 'sum'}
  assert counts['sum'] == pytest.approx(500, abs=80)  # 4 standard deviations
  rng = np.random.default_rng(0)
  layouts = [
    tables.draw_layout(rng, {'csv': 3.0, 'plain': 1.0, 'json': 0.0})
    for _ in range(2_000)
  ]
  counts = collections.Counter(layouts)
  assert set(counts) == {'csv', 'plain'}
  assert counts['plain'] == pytest.approx(500, abs=80)


@pytest.mark.parametrize('layout', LISTS)
def test_lists_hold_numbers_only_where_sorting_is_wanted(layout):
  def share_of_numbers(tasks):
    made = [converse(seed, layout, tasks)[0] for seed in range(100)]
    return np.mean([table.rows[0][1].isdigit() for table in made])

  assert share_of_numbers({'retrieve': 1.0, 'sort': 0.0}) == 0
  assert share_of_numbers({'sort': 1.0, 'join': 1.0}) == 1
  assert 0.3 < share_of_numbers({'retrieve': 1.0, 'sort': 0.1}) < 0.7


def test_weights_that_leave_no_choice_are_refused():
  with pytest.raises(ValueError, match=r"tasks: unknown \['lookup'\]"):
    converse(0, 'csv', {'retrieve': 1.0, 'lookup': 1.0})
  with pytest.raises(ValueError, match=r"layouts: unknown \['html'\]"):
    converse(0, 'html', {'retrieve': 1.0})
  for weights in ({}, {'sum': 0.0}, {'sum': -1.0, 'count': 2.0}):
    with pytest.raises(ValueError, match='weights must be 0 or more'):
      converse(0, 'csv', weights)
  with pytest.raises(ValueError, match="tasks in a 'plain' table"):
    converse(0, 'plain', {'join': 1.0})


@pytest.mark.parametrize('layout', tables.LAYOUTS)
def test_turns_are_the_table_then_one_question_each(layout):
  tasks = dict.fromkeys(tables.TASKS, 1.0)
  table, questions = converse(3, layout, tasks, num_questions=4)
  turns = tables.conversation_turns(table, questions)
  first = f'{table.text}\n\n {questions[0].text}'
  assert [user for user, _ in turns] == [
    first,
    *(question.text for question in questions[1:]),
  ]
  assert [answer for _, answer in turns] == [q.answer for q in questions]


def test_plain_words_are_in_the_vocabulary_and_always_follow_a_space():
  """Then a word is one token, and the same in table, question and answer."""
  vocabulary = set(tables.vocabulary_text().split('\n'))
  tasks = {'retrieve': 1.0, 'absent': 1.0, 'position': 1.0, 'sort': 1.0}
  for seed in range(30):
    table, questions = converse(seed, 'plain', tasks, 192, 40)
    for turn in tables.conversation_turns(table, questions):
      for text in turn:
        # A turn follows a space (chat.py).
        words = re.findall(r' ?\S+', ' ' + text)
        assert {w for w in words if not w[1:].isdigit()} <= vocabulary


def test_the_fingerprint_follows_the_lists_and_the_remarks(monkeypatch):
  before = tables.fingerprint()
  assert before == tables.fingerprint()
  changed = table_values.word_lists() | {'month': ('May',)}
  remarks = table_values.remarks()
  with monkeypatch.context() as patch:
    patch.setattr(table_values, 'word_lists', lambda: changed)
    assert tables.fingerprint() != before
  with monkeypatch.context() as patch:
    patch.setattr(table_values, 'remarks', lambda: remarks[1:])
    assert tables.fingerprint() != before
  assert tables.fingerprint() == before
