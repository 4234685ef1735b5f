"""Conversations: loss on answers alone, the same token for the same word."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data.chat import encode_conversation
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.synthetic_tables import (
  conversation_turns,
  make_conversation,
)

PLAIN = TEMPLATES['plain'].control
TURNS = st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4)


def runs(flags):
  """(start, stop) of the runs of ones."""
  edges = np.flatnonzero(np.diff([0, *flags, 0]))
  return edges.reshape(-1, 2).tolist()


def test_conversation_is_encoded_as_drawn(corpus):
  tokenizer = corpus.tokenizer
  user, assistant, end = map(tokenizer.control_id, PLAIN)
  tokens, mask = encode_conversation(corpus.chat, [('1+1', '2'), ('3', '4')])
  parts = [
    ([tokenizer.bos_id, user], 0),
    (tokenizer.encode(' 1+1').tolist(), 0),
    ([assistant], 0),
    ([*tokenizer.encode(' 2').tolist(), end], 1),
    ([user, *tokenizer.encode(' 3').tolist()], 0),
    ([assistant], 0),
    ([*tokenizer.encode(' 4').tolist(), end], 1),
  ]
  assert tokens.tolist() == [token for ids, _ in parts for token in ids]
  assert mask.tolist() == [bool(m) for ids, m in parts for _ in ids]


@settings(deadline=None)
@given(TURNS)
def test_loss_mask_covers_the_answers_and_nothing_else(corpus, turns):
  tokenizer = corpus.tokenizer
  _, assistant, end = map(tokenizer.control_id, PLAIN)
  tokens, mask = encode_conversation(corpus.chat, turns)
  answers = runs(mask)
  assert len(answers) == len(turns)
  for (start, stop), (_, answer) in zip(answers, turns, strict=True):
    assert tokens[start - 1] == assistant
    assert tokenizer.decode(tokens[start:stop]) == ' ' + answer
    assert tokens[stop - 1] == end
  prompts = runs(~mask)
  for (start, stop), (user, _) in zip(prompts, turns, strict=True):
    assert tokenizer.decode(tokens[start:stop]) == ' ' + user


def test_a_word_is_the_same_tokens_in_table_question_and_answer(corpus):
  tokenizer = corpus.tokenizer
  newline = tokenizer.encode('\n').tolist()
  table, questions = make_conversation(
    np.random.default_rng(0),
    tasks={'retrieve': 1.0},
    layouts={'plain': 1.0},
    num_rows=20,
    num_questions=20,
  )
  turns = conversation_turns(table, questions)
  tokens, mask = encode_conversation(corpus.chat, turns)
  first_prompt = tokens[2 : runs(mask)[0][0] - 1].tolist()
  # Lines of the table, an empty one, and the first question.
  lines, line = [], []
  for token in first_prompt:
    if [token] == newline:
      lines.append(line)
      line = []
    else:
      line.append(token)
  line_of_key = dict(zip([row[0] for row in table.rows], lines, strict=False))
  assert lines[len(table.rows)] == []
  prompts, answers = runs(~mask)[1:], runs(mask)
  asked = [line, *(tokens[a + 1 : b - 1].tolist() for a, b in prompts)]
  given_answers = [tokens[a : b - 1].tolist() for a, b in answers]
  for question, key, answer in zip(
    questions, asked, given_answers, strict=True
  ):
    line = line_of_key[question.text]
    assert line[: len(key)] == key
    assert line[-len(answer) :] == answer
