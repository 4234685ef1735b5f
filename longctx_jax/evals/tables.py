"""Held-out synthetic tables: exact answers by task and by length."""

from collections import defaultdict

import numpy as np

from longctx_jax.data.chat import Chat
from longctx_jax.data.synthetic_tables import LAYOUTS, TASKS
from longctx_jax.data.table_conversations import make_table_conversation
from longctx_jax.data_config import TableRows
from longctx_jax.evals.predict import Predictor

# ours: a stream of tables apart from every training source's, whose second
# number is its place in the mixture.
HELDOUT_STREAM = 1_000_000


def table_accuracy(
  predictor: Predictor,
  chat: Chat,
  *,
  lengths: tuple[int, ...],
  samples: int,
  seed: int,
) -> dict[str, dict[str, float]]:
  """Share of exactly answered questions, by length and 'layout task'.

  `samples` tables of each layout at each length, with tasks drawn evenly.
  Answers to earlier questions of a conversation are given as they should have
  been. An answer is right if greedy decoding gives its very tokens and ends:
  predictions that differ from them were made for a text that nobody decoded.
  """
  accuracy: dict[str, dict[str, float]] = {}
  for length in lengths:
    conversations = [
      _conversation(chat, layout, length, (seed, HELDOUT_STREAM, k))
      for layout in LAYOUTS
      for k in range(samples)
    ]
    correct = defaultdict(list)
    rows = predictor.rows([c.encoded[0] for c in conversations])
    for conversation, (_, predictions) in zip(conversations, rows, strict=True):
      tokens, loss_mask = conversation.encoded
      expected = _answers(loss_mask, tokens[1:])
      given = _answers(loss_mask, predictions)
      for question, *both in zip(
        conversation.questions, expected, given, strict=True
      ):
        name = f'{conversation.table.layout} {question.task}'
        correct[name].append(np.array_equal(*both))
    accuracy[str(length)] = {
      name: float(np.mean(results)) for name, results in sorted(correct.items())
    }
  return accuracy


def _conversation(chat, layout, length, seed):
  config = TableRows(
    kind='tables',
    weight=1.0,
    tasks=dict.fromkeys(TASKS, 1.0),
    layouts={layout: 1.0},
    num_columns=4,
    min_len=length,
    max_len=length,
    question_frac=0.5,
    max_questions=16,
  )
  return make_table_conversation(
    np.random.default_rng(seed), chat, config, length
  )


def _answers(
  loss_mask: np.ndarray, next_tokens: np.ndarray
) -> list[np.ndarray]:
  """The next tokens at each run of answer tokens in a conversation."""
  edges = np.diff(np.concatenate([[0], loss_mask.astype(np.int8), [0]]))
  starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
  # The token at position t is predicted by entry t - 1.
  return [
    next_tokens[start - 1 : stop - 1]
    for start, stop in zip(starts, stops, strict=True)
  ]
