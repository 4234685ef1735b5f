"""Synthetic retrieval: answers are those that the official scorers look for."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import needles, retrieval_conversations, retrieval_texts
from longctx_jax.data.retrieval_conversations import (
  TASKS,
  RetrievalConversations,
)
from longctx_jax.data.stored_text import StoredText
from longctx_jax.data.synthetic_rows import SyntheticRows
from longctx_jax.data_config import RetrievalRows
from longctx_jax.suites import infinitebench

CONFIG = RetrievalRows(
  'retrieval', 1.0, dict.fromkeys(TASKS, 1.0), 128, 2048, max_questions=3
)


@pytest.fixture(scope='module')
def text(corpus):
  documents = np.arange(len(corpus.documents))
  return StoredText(corpus.documents, documents, corpus.tokenizer)


@pytest.fixture(scope='module')
def make(corpus, text):
  """(task, seed, length, fields of the config) -> a conversation."""

  def make_one(task, seed=0, length=1000):
    most = CONFIG.max_questions if task in ('kv_retrieval', 'needle') else 1
    config = dataclasses.replace(CONFIG, tasks={task: 1.0}, max_questions=most)
    conversations = RetrievalConversations(config, corpus.chat, text)
    return conversations.make(np.random.default_rng(seed), length)

  return make_one


@pytest.mark.parametrize('task', ['passkey', 'number_string'])
def test_a_hidden_key_is_in_the_text_once_and_the_scorer_takes_the_answer(
  make, task
):
  places, keys = [], set()
  for seed in range(20):
    ((asked, answer),) = make(task, seed).turns
    wording = retrieval_texts.WORDINGS[task]
    head, tail = wording.prompt.split('{context}')
    tail = tail.replace('{input}', wording.input)
    assert asked.startswith(head)
    assert asked.endswith(tail)
    context = asked[len(head) : -len(tail)]
    lines = context.splitlines(keepends=True)
    (at,) = [i for i, x in enumerate(lines) if x != retrieval_texts.NOISE]
    first, second = re.findall(r'\d+', lines[at])
    assert first == second
    assert answer == f'{wording.prefix} {first}'
    score = infinitebench.TASKS[task].score
    assert score(answer.removeprefix(wording.prefix), first)
    places.append(at / (len(lines) - 1))
    keys.add(first)
  assert len(keys) == 20
  assert min(places) < 0.2
  assert max(places) > 0.8


def test_the_pairs_asked_for_have_the_values_that_are_shown(make):
  orders = set()
  for seed in range(20):
    turns = make('kv_retrieval', seed).turns
    shown = json.loads(re.search(r'JSON data:\n(\{.*\})\n', turns[0][0])[1])
    assert len(shown) > 3
    asked = [re.findall(r'Key: "(.*)"', question)[-1] for question, _ in turns]
    assert [shown[key] for key in asked] == [answer for _, answer in turns]
    assert len(set(asked)) == len(asked) == 3
    places = [list(shown).index(key) for key in asked]
    orders.add(places == sorted(places))
    assert all('JSON' not in question for question, _ in turns[1:])
  assert orders == {True, False}


def test_as_many_pairs_are_asked_for_as_there_are(make):
  turns = make('kv_retrieval', length=1).turns
  assert len(turns) == 1


def test_needles_lie_in_stored_text_and_are_all_asked_for(make, corpus, text):
  whole = text.read(0, 2 * len(text))
  counts, orders = set(), set()
  for seed in range(30):
    turns = make('needle', seed).turns
    haystack, first = turns[0][0].rsplit('\n ', 1)
    found = dict(re.findall(r' The magic word: (\S+) (\S+)\.', ' ' + haystack))
    answers = [f'{key} {value}' for key, value in found.items()]
    assert sorted(answer for _, answer in turns) == sorted(answers)
    for question, answer in [(first, turns[0][1]), *turns[1:]]:
      assert question == f'What is the magic word of {answer.split()[0]}'
    rest = re.sub(r' ?The magic word: \S+ \S+\.', '', haystack)
    assert rest.strip() in whole
    assert len(rest) > 1000
    counts.add(len(turns))
    orders.add([answer for _, answer in turns] == answers)
  assert counts == {1, 2, 3}
  assert orders == {True, False}


@pytest.mark.parametrize('task', TASKS)
def test_conversations_fill_the_length_that_is_asked_for(make, task):
  # A pair of identifiers that is shown and asked for takes 230 tokens.
  for length in (2000, 8000):
    used = [len(make(task, seed, length).encoded[0]) for seed in range(5)]
    assert max(used) <= length
    assert np.mean(used) > 0.9 * length


@pytest.mark.parametrize('task', TASKS)
def test_the_loss_is_on_the_answers_alone(make, corpus, task):
  conversation = make(task)
  tokens, mask = conversation.encoded
  answered = corpus.tokenizer.decode(tokens[mask])
  answers = [answer for _, answer in conversation.turns]
  assert answered.split() == ' '.join(answers).split()


def rows_of(config, corpus, text, row_len=512, seed=0):
  conversations = RetrievalConversations(config, corpus.chat, text)
  lens = config.min_len, config.max_len
  return SyntheticRows(conversations, lens, row_len, (seed, 0))


def test_a_row_depends_on_its_number_alone(corpus, text):
  config = dataclasses.replace(CONFIG, max_len=512)
  rows, again = (rows_of(config, corpus, text) for _ in range(2))
  read = [rows.row(i) for i in range(10)]
  for i in reversed(range(10)):
    assert all(map(np.array_equal, again.row(i), read[i]))
  assert len({row.tokens.tobytes() for row in read}) == 10
  other = rows_of(config, corpus, text, seed=1).row(0)
  assert not np.array_equal(other.tokens, read[0].tokens)


def test_origins_name_the_task_of_each_conversation(corpus, text):
  config = dataclasses.replace(CONFIG, max_len=512)
  rows = rows_of(config, corpus, text, row_len=1024)
  seen = set()
  for i in range(20):
    lens = rows.row(i).slice_lens.tolist()
    for k, (origin, n) in enumerate(zip(rows.origins(i), lens, strict=True)):
      task, number = origin.name.split()
      assert (number, origin.domain, origin.start, origin.stop) == (
        *(f'{i}/{k}', 'retrieval'),
        *(0, n),
      )
      seen.add(task)
  assert seen == set(TASKS)


def test_questions_are_no_more_than_the_text_they_are_about(corpus, text):
  config = dataclasses.replace(
    CONFIG, min_len=96, max_len=512, max_questions=60
  )
  rows = rows_of(config, corpus, text)
  asked = []
  for i in range(100):
    row = rows.row(i)
    assert len(row.tokens) <= 512
    for origin, tokens, mask in zip(
      rows.origins(i),
      np.split(row.tokens, np.cumsum(row.slice_lens)[:-1]),
      np.split(row.loss_mask, np.cumsum(row.slice_lens)[:-1]),
      strict=True,
    ):
      turns = int((np.diff(mask.astype(int)) == 1).sum())
      asked.append(turns)
      if origin.name.startswith('needle'):
        shown = corpus.tokenizer.decode(tokens)
        hidden = re.findall(r' The magic word: \S+ \S+\.', shown)
        assert len(hidden) == turns
        rest = re.sub(r' The magic word: \S+ \S+\.', '', shown)
        rest, _, questions = rest.partition('What is the magic word of')
        assert questions
        num_rest = len(corpus.tokenizer.encode(rest))
        assert turns == 1 or num_rest > 0.4 * len(tokens)
  assert max(asked) > 5


def test_a_task_whose_smallest_texts_just_fit_fails_in_no_row(corpus, text):
  config = dataclasses.replace(
    CONFIG, tasks={'kv_retrieval': 1.0}, min_len=8, max_len=8
  )
  with pytest.raises(ConfigError, match='smallest text of') as refused:
    RetrievalConversations(config, corpus.chat, text)
  smallest = int(re.search(r'has (\d+) tokens', str(refused.value))[1])
  config = dataclasses.replace(config, max_len=smallest)
  rows = rows_of(config, corpus, text, row_len=smallest)
  assert all(0 < len(rows.row(i).tokens) <= smallest for i in range(200))


def test_a_text_too_long_for_any_row_is_a_clear_error(corpus, text):
  config = dataclasses.replace(
    CONFIG, tasks={'passkey': 1.0}, min_len=8, max_len=32, max_questions=1
  )
  with pytest.raises(
    ConfigError, match=r'max_len=32: the smallest text of the task passkey has'
  ):
    rows_of(config, corpus, text, row_len=32)


def test_the_fingerprint_changes_with_what_conversations_are_made_of(
  corpus, text, monkeypatch
):
  def fingerprint(text=text, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return RetrievalConversations(config, corpus.chat, text).fingerprint

  before = fingerprint()
  assert fingerprint() == before
  other = copy.copy(text)
  other.fingerprint = 'of a store whose first words are the same'
  assert fingerprint(other) != before
  words = needles.word_lists()
  for module, name, changed in (
    (retrieval_conversations, 'NOISE', 'x\n'),
    (retrieval_texts, 'NOISE', 'The grass is blue.\n'),
    (needles, 'word_lists', lambda: {**words, 'word': words['word'][1:]}),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(module, name, changed)
      # Where a line of noise is only counted, no text depends on it.
      same = module is retrieval_conversations
      assert (fingerprint() == before) == same
  # Of the tasks that the config has, and no other.
  pairs = {'tasks': {'kv_retrieval': 1.0, 'needle': 0.0}}
  assert fingerprint(None, **pairs) == fingerprint(None, **pairs)
  assert fingerprint(None, **pairs) != before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'tasks': {'lookup': 1.0}, 'max_questions': 1},
      r"tasks: unknown \['lookup'\]; there are",
    ),
    ({'tasks': {'passkey': 0.0}, 'max_questions': 1}, 'weights must be'),
    (
      {'max_questions': 10**4},
      r'max_questions=10000: .* words for \d+ needles',
    ),
  ],
)
def test_what_no_conversation_can_be_made_of_is_refused(
  corpus, text, changes, message
):
  config = dataclasses.replace(CONFIG, **changes)
  with pytest.raises(ConfigError, match=message):
    RetrievalConversations(config, corpus.chat, text)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'min_len': 0}, 'min_len=0, max_len=2048: need 1 <='),
    ({'max_len': 100}, 'min_len=128, max_len=100: need'),
    ({'max_questions': 0}, 'max_questions'),
    (
      {'tasks': {'passkey': 1.0, 'needle': 0.0}},
      'max_questions=3 would',
    ),
    (
      {'tasks': {'kv_retrieval': 1.0}, 'domains': ('docs',)},
      r"domains=\('docs',\) would not be read",
    ),
  ],
)
def test_fields_that_say_nothing_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(CONFIG, **changes)
