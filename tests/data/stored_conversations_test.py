"""Conversations of a corpus: from files, cut or left out, into rows."""

import json
import logging

import pytest

from longctx_jax.config_from_dict import ConfigError, from_config_dict
from longctx_jax.data.chat import encode_conversation
from longctx_jax.data.pipeline import BatchSource
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.data.stored_conversations import stored_conversations
from longctx_jax.data_config import DataConfig
from tests import small

# Conversations of 1, 2, ... turns; then one of a long answer, one of a long
# question.
TURNS = [
  *(
    [(f'Question {k} of {n}?', f'Answer {k}.') for k in range(n)]
    for n in range(1, 7)
  ),
  [('Count.', ' '.join(map(str, range(99))))],
  [('w ' * 300, 'Long.')],
]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'mine.jsonl'
  lines = [
    {'data': [text for turn in turns for text in turn]} for turns in TURNS
  ]
  lines.insert(3, {'data': ['nobody answers']})
  path.write_text('\n'.join(map(json.dumps, lines)))
  return path


def stored(corpus, path, max_len=60, accounts=None, **files):
  config = small.corpus_config(
    conversations={},
    max_conversation_len=max_len,
    conversation_files={'mine': {'path': str(path), **files}},
  )
  accounts = {} if accounts is None else accounts
  return list(
    stored_conversations(config, corpus.chat, [], seed=0, accounts=accounts)
  )


def encoded(corpus, turns):
  tokens, mask = encode_conversation(corpus.chat, turns)
  return tokens.tolist(), mask.tolist()


def test_conversations_that_fit_are_kept_as_they_are(corpus, path, caplog):
  caplog.set_level(logging.INFO)
  made = stored(corpus, path, max_len=10**6)
  assert [(d.tokens.tolist(), d.loss_mask.tolist()) for d in made] == [
    encoded(corpus, turns) for turns in TURNS
  ]
  assert [d.name for d in made] == [f'mine/{i}' for i in range(len(TURNS))]
  assert {d.domain for d in made} == {'mine'}
  assert 'of mine: 8 kept, 1 skipped: no assistant turn' in caplog.text


def test_last_questions_left_off_are_counted(corpus, path, caplog):
  caplog.set_level(logging.INFO)
  flat = [text for turn in TURNS[0] for text in turn]
  lines = [{'data': flat}, *[{'data': [*flat, 'And?']}] * 2]
  path.write_text('\n'.join(map(json.dumps, lines)))
  accounts = {}
  made = stored(corpus, path, accounts=accounts)
  one = encoded(corpus, TURNS[0])[0]
  assert [d.tokens.tolist() for d in made] == [one] * 3
  assert 'of mine: 3 kept, 2 cut by an unanswered question' in caplog.text
  assert accounts['mine'].as_dict()['documents'] == {'seen': 3, 'kept': 3}


def test_long_ones_are_dropped_and_counted(corpus, path, caplog):
  caplog.set_level(logging.INFO)
  accounts = {}
  made = stored(corpus, path, accounts=accounts)
  fit = [t for t in TURNS if len(encoded(corpus, t)[0]) <= 60]
  assert 1 < len(fit) < 6
  assert [d.tokens.tolist() for d in made] == [
    encoded(corpus, turns)[0] for turns in fit
  ]
  assert f'{len(fit)} kept, {8 - len(fit)} dropped as too long' in caplog.text
  accounts['mine'].check()
  assert accounts['mine'].as_dict()['documents'] == {
    'seen': 9,
    'kept': len(fit),
    'too_long': 8 - len(fit),
    'no assistant turn': 1,
  }


def test_truncation_keeps_whole_turns_from_the_first_on(corpus, path, caplog):
  caplog.set_level(logging.INFO)
  made = stored(corpus, path, on_long='truncate')
  # All but the one whose question alone is too long.
  assert len(made) == 7
  for document, turns in zip(made[:6], TURNS[:6], strict=True):
    fitting = [
      encoded(corpus, turns[:n])
      for n in range(1, len(turns) + 1)
      if len(encoded(corpus, turns[:n])[0]) <= 60
    ]
    kept = document.tokens.tolist(), document.loss_mask.tolist()
    assert kept == fitting[-1]
  long = encoded(corpus, TURNS[6])
  assert made[6].tokens.tolist() == long[0][:60]
  assert made[6].loss_mask.tolist() == long[1][:60]
  cut = sum(len(encoded(corpus, turns)[0]) > 60 for turns in TURNS[:7])
  assert f'7 kept ({cut} of them truncated), 1 dropped' in caplog.text


def test_stop_names_the_file_set_and_both_lengths(corpus, path):
  first = next(t for t in TURNS if len(encoded(corpus, t)[0]) > 60)
  n = len(encoded(corpus, first)[0])
  match = (
    rf'files\.mine: conversation {TURNS.index(first) + 1} has {n} tokens, more'
    r' than corpus\.max_conversation_len=60'
  )
  with pytest.raises(ConfigError, match=match) as raised:
    stored(corpus, path, on_long='stop')
  assert '\n' not in str(raised.value)


def test_files_may_have_a_limit_of_their_own(corpus, path):
  def made(**fields):
    config = small.corpus_config(
      conversations={},
      max_conversation_len=60,
      conversation_files={
        'short': {'path': str(path)},
        'mine': {'path': str(path), **fields},
      },
    )
    found = stored_conversations(config, corpus.chat, [], 0, accounts={})
    return [(d.domain, len(d.tokens)) for d in found]

  lens = [len(encoded(corpus, turns)[0]) for turns in TURNS]
  assert max(lens) > 100
  assert made(max_len=100) == [
    *(('mine', n) for n in lens if n <= 100),
    *(('short', n) for n in lens if n <= 60),
  ]
  match = r'more than corpus\.conversation_files\.mine\.max_len=100: raise'
  with pytest.raises(ConfigError, match=match):
    made(max_len=100, on_long='stop')


def test_files_without_conversations_say_what_is_wrong(corpus, tmp_path):
  path = tmp_path / 'mine.jsonl'
  path.write_text('{"data": ["nobody answers"]}\n' * 3)
  match = r'\(mine\): none .*\(0 are longer, 3 skipped: no assistant turn\)'
  with pytest.raises(ConfigError, match=match):
    stored(corpus, path)


def test_rows_may_be_of_one_file_set_alone(path, tmp_path):
  files = {'mine': {'path': str(path), 'on_long': 'truncate'}}
  config = small.corpus_config(conversation_files=files)
  corpus = prepare_corpus(config, tmp_path / 'c', seed=0)
  assert set(corpus.conversations.domain_names) == {'extract', 'needle', 'mine'}
  fields = {
    'seq_len': 128,
    'batch_size': 4,
    'document_mask': True,
    'restart_positions': True,
    'loss_normalizer': 'token',
    'mixture': {
      'chat': {
        'kind': 'conversations',
        'weight': 1.0,
        'conversations': ('mine',),
      }
    },
  }
  data = from_config_dict(DataConfig, fields)
  source = BatchSource(data, corpus, seed=0, num_steps=2)
  for i in range(len(source)):
    row = source[i]
    text = corpus.tokenizer.decode(row.tokens)
    trained = corpus.tokenizer.decode(row.targets[row.loss_weights > 0])
    assert 'Question' in text or 'Count.' in text
    assert 'Question' not in trained
    assert 'Answer 0.' in trained or ' 0 1 2 3' in trained
