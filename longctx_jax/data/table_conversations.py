"""Synthetic tables with questions, as conversations of about a length."""

import math
from typing import NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data import synthetic_tables
from longctx_jax.data.chat import Chat, encode_conversation
from longctx_jax.data.synthetic_rows import Encoded, fit_length
from longctx_jax.data_config import TableRows

# ours: lines of 'annotated' vary in length, and now and then one alone is too
# long even for a row; the shortest of a few is not.
MAX_DRAWS = 4


class TableConversation(NamedTuple):
  """A table, questions about it, and both as turns and as tokens."""

  table: synthetic_tables.Table
  questions: list[synthetic_tables.Question]
  turns: list[tuple[str, str]]
  encoded: Encoded
  name: str = 'table'


class TableConversations:
  """Makes them with the tasks and layouts of a config."""

  domain = 'tables'

  def __init__(self, config: TableRows, chat: Chat):
    """
    Raises:
      ConfigError: a task or layout that there is none of.
    """
    self._config, self._chat = config, chat
    self.fingerprint = f'{synthetic_tables.fingerprint()}-{chat.fingerprint}'

  def make(self, rng: np.random.Generator, length: int) -> TableConversation:
    """One of at most `length` tokens, or a table of a single row."""
    try:
      return make_table_conversation(rng, self._chat, self._config, length)
    except ValueError as error:  # of a task or layout that there is none of
      raise ConfigError(str(error)) from error


def make_table_conversation(
  rng: np.random.Generator,
  chat: Chat,
  config: TableRows,
  length: int,
) -> TableConversation:
  """A table and questions that fill at most about `length` tokens.

  Only a table of a single row may be longer.
  """
  layout = synthetic_tables.draw_layout(rng, config.layouts)
  made = []
  for seed in rng.integers(2**63, size=MAX_DRAWS).tolist():
    made.append(_fit_table(seed, chat, config, layout, length))
    if len(made[-1].encoded[0]) <= length:
      return made[-1]
  return min(made, key=lambda conversation: len(conversation.encoded[0]))


def _fit_table(seed, chat, config, layout, length):
  """One seed for all sizes tried: what they share keeps lengths in line."""
  num_rows = synthetic_tables.estimate_rows(
    layout, config.num_columns, 2 * length
  )
  return fit_length(
    lambda n: _table_of(seed, chat, config, layout, n), num_rows, length, 1
  )


def _table_of(seed, chat, config, layout, num_rows):
  asked = math.ceil(config.question_frac * num_rows)
  table, questions = synthetic_tables.make_conversation(
    np.random.default_rng(seed),
    tasks=config.tasks,
    layouts={layout: 1.0},
    num_rows=num_rows,
    num_questions=min(asked, config.max_questions),
    num_columns=config.num_columns,
  )
  turns = synthetic_tables.conversation_turns(table, questions)
  encoded = encode_conversation(chat, turns)
  return TableConversation(table, questions, turns, encoded)
