"""Instruction data: every answer can be read off the document it is about."""

import ast
import re

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.documents import Document, read_documents
from longctx_jax.data.instructions import make_conversations

CODE = '''\
# a/b.py
import functools
\x0c
def add(a, b):
  """Adds two numbers.

  More about it.
  """
  # The point of it all.
  return a + b


class Box:
  """Holds one thing and gives it back."""

  def get(self):
    """Gives it back."""
    return self.thing

  def dedented(self):
    """Its string starts left of it."""
    return """
left
"""


def decorator(function):
  """Counts calls."""
  @functools.wraps(function)
  def wrapped():
    return function()
  return wrapped


def one_line(): """Does nothing."""; return 0
def two_lines():
  """Does less."""; x = 1
  return x
def _private():
  """Is not asked about."""
  return '\\d'
def undocumented():
  return 1
def empty():
  """Has no body."""
'''

FUNCTIONS = {
  'add: Adds two numbers.': """\
def add(a, b):
  # The point of it all.
  return a + b""",
  'get: Gives it back.': """\
def get(self):
  return self.thing""",
  'decorator: Counts calls.': """\
def decorator(function):
  @functools.wraps(function)
  def wrapped():
    return function()
  return wrapped""",
}


def conversations(kind, text, count=100, seed=0):
  documents = [Document('d', 'x', text)]
  rng = np.random.default_rng(seed)
  return make_conversations(kind, documents, count, rng, max_chars=2000)


@pytest.fixture(scope='module')
def library(tmp_path_factory):
  source = TextSource('stdlib', 400_000)
  return read_documents(source, 'code', tmp_path_factory.getbasetemp())


@pytest.fixture(scope='module')
def prose(tmp_path_factory):
  source = TextSource('docs', 60_000)
  return read_documents(source, 'docs', tmp_path_factory.getbasetemp())


def test_functions_are_cut_out_without_their_docstrings():
  made = conversations('write_function', CODE)
  assert {question: answer for [(question, answer)] in made} == {
    f'Write the Python function {name}': source
    for name, source in FUNCTIONS.items()
  }


def test_functions_of_the_library_parse_and_lack_their_docstring(library):
  rng = np.random.default_rng(0)
  made = make_conversations(
    'write_function', library, 10_000, rng, max_chars=600
  )
  assert len(made) > 50
  for [(question, answer)] in made:
    asked = re.fullmatch(r'Write the Python function (\w+): (.+)', question)
    name, doc = asked.groups()
    [function] = ast.parse(answer).body
    assert function.name == name
    assert doc not in (ast.get_docstring(function) or '')


def test_definitions_are_first_lines_of_docstrings():
  made = conversations('define', CODE)
  assert sorted(turn for [turn] in made) == [
    ('What is the class Box?', 'Holds one thing and gives it back.'),
    ('What is the function dedented?', 'Its string starts left of it.'),
  ]


def test_what_does_not_parse_gives_no_functions():
  for text in ('def f(:\n', 'x = \x00', 'print "python 2"'):
    assert conversations('write_function', text) == []
    assert conversations('define', text) == []


def test_extracted_words_follow_their_phrases_which_occur_once(prose):
  made = make_conversations(
    'extract', prose, 10_000, np.random.default_rng(0), max_chars=400
  )
  assert len(made) > 50
  for turns in made:
    text, question = turns[0][0].split('\n ')
    words = text.split(' ')
    questions = [question, *(user for user, _ in turns[1:])]
    assert len(set(questions)) == len(questions) == 3
    for question, (_, answer) in zip(questions, turns, strict=True):
      phrase = question.removeprefix('What follows: ').split(' ')
      places = [i for i in range(len(words) - 2) if words[i : i + 3] == phrase]
      assert len(places) == 1
      assert words[places[0] + 3] == answer


def test_phrases_that_overlap_themselves_are_not_asked_about():
  # `= = =` is at three places, each time before something else or nothing.
  words = [f'word{i}' for i in range(40)]
  text = ' '.join(
    [*words, *['=', '=', '=', '=', '='], *words[:3], 'end', 'end']
  )
  asked = {
    user.split('What follows: ')[1]
    for seed in range(100)
    for turns in conversations('extract', text, seed=seed)
    for user, _ in turns
  }
  assert len(asked) > 20
  assert '= = =' not in asked
  assert 'word0 word1 word2' not in asked


def test_every_needle_is_in_its_haystack_with_its_answer(prose):
  made = make_conversations(
    'needle', prose, 300, np.random.default_rng(0), max_chars=400
  )
  assert len(made) == 300
  assert {len(turns) for turns in made} == {1, 2, 3, 4, 5}
  for turns in made:
    haystack, first = turns[0][0].rsplit('\n ', 1)
    questions = [first, *(user for user, _ in turns[1:])]
    assert haystack.count('The magic word:') == len(turns)
    for question, (_, answer) in zip(questions, turns, strict=True):
      key = question.removeprefix('What is the magic word of ')
      assert f'The magic word: {answer}.' in haystack
      assert haystack.count(f'word: {key} ') == 1


def test_needles_go_over_the_documents_until_there_are_enough():
  text = 'some words here ' * 300
  assert len(conversations('needle', text, count=7)) == 7
  assert conversations('needle', 'too short', count=7) == []
  assert len(conversations('extract', ' '.join(map(str, range(99))), 7)) == 1


def test_conversations_are_a_function_of_the_generator(prose):
  made = [
    make_conversations(
      'extract', prose, 20, np.random.default_rng(seed), max_chars=400
    )
    for seed in (0, 0, 1)
  ]
  assert made[0] == made[1] != made[2]


def test_an_unknown_kind_is_named_with_those_there_are():
  with pytest.raises(ConfigError, match="kind 'poem', there are write_func"):
    conversations('poem', '')
