"""Long texts that hide what is asked for, as conversations of about a length.

    passkey        lines of noise, and a key of five digits among them
    number_string  the same, and a key of ten digits with repeats
    kv_retrieval   a JSON object of UUIDs, of which some keys are asked for
    needle         stored documents, and short facts at places in them

The first three are in the very words of InfiniteBench's test, the last one in
those of our own (`data/needles.py`): what they train, these tests measure no
longer as a skill that was carried over.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.chat import Chat, encode_conversation
from longctx_jax.data.draws import check_weights, draw_weighted
from longctx_jax.data.needles import draw_needles, hide_needles, most_needles
from longctx_jax.data.retrieval_texts import (
  NOISE,
  WORDINGS,
  draw_key,
  draw_uuid,
  hide_key,
)
from longctx_jax.data.stored_text import StoredText
from longctx_jax.data.synthetic_rows import Encoded, fit_length
from longctx_jax.data_config import RetrievalRows

Turns = list[tuple[str, str]]

# ours: of conversations that change whenever what makes them does.
_SAMPLE_SIZE = 8
# ours: tokens of a key vary, and of the smallest text that fits, one in so many
# does not; of as many draws as MAX_DRAWS, at least one does.
_SMALLEST_TRIED = 64
MAX_DRAWS = 8
# ours: the first size tried makes a little less than is asked for.
_FIRST_GUESS = 0.95


class RetrievalConversation(NamedTuple):
  """A text that hides something, and questions about it."""

  name: str  # of its task
  turns: Turns
  encoded: Encoded


class RetrievalConversations:
  """Makes them with the tasks of a config."""

  domain = 'retrieval'

  def __init__(
    self, config: RetrievalRows, chat: Chat, text: StoredText | None
  ):
    """`text` is what needles are hidden in, if the config has any.

    Raises:
      ConfigError: a task that there is none of, weights that are none, more
        needles than there are words for, or a task of which not even the
        smallest text has room in `max_len`.
    """
    try:
      check_weights(config.tasks, known=TASKS, what='tasks')
    except ValueError as error:
      raise ConfigError(str(error)) from error
    if config.tasks.get('needle') and config.max_questions > most_needles():
      raise ConfigError(
        f'max_questions={config.max_questions}: there are words for'
        f' {most_needles()} needles in a text'
      )
    self._config, self._chat, self._text = config, chat, text
    tasks = sorted(task for task, weight in config.tasks.items() if weight)
    self._size_tokens, self._question_tokens = self._count_tokens()
    for task in tasks:
      self._check_smallest(task)
    samples = [self._of(0, task, _SAMPLE_SIZE).turns for task in tasks]
    of_text = None if text is None else text.fingerprint
    described = [samples, chat.fingerprint, of_text]
    digest = hashlib.sha256(json.dumps(described).encode())
    self.fingerprint = digest.hexdigest()[:16]

  def make(
    self, rng: np.random.Generator, length: int
  ) -> RetrievalConversation:
    """One of at most `length` tokens, or of a text that is hardly any."""
    task = draw_weighted(rng, self._config.tasks)
    size = max(1, int(_FIRST_GUESS * length / self._size_tokens[task]))
    made = []
    for seed in rng.integers(2**63, size=MAX_DRAWS).tolist():
      # One seed for all sizes tried: what they share keeps lengths in line.
      of_size = functools.partial(self._of, seed, task)
      made.append(fit_length(of_size, size, length, 1))
      if len(made[-1].encoded[0]) <= length:
        return made[-1]
    return min(made, key=lambda conversation: len(conversation.encoded[0]))

  def _of(self, seed, task, size) -> RetrievalConversation:
    # Questions are no more than what they are about, or one.
    most = int(size * self._size_tokens[task] / self._question_tokens[task])
    most = max(1, min(most, self._config.max_questions))
    turns = TASKS[task](seed, size, most, self._text)
    return RetrievalConversation(
      task, turns, encode_conversation(self._chat, turns)
    )

  def _count_tokens(self) -> tuple[dict[str, float], dict[str, int]]:
    """By task: tokens by which a text grows with its size; of a question."""

    def count(text):
      return len(self._chat.encode_text(text))

    def count_turn(question, answer):
      one, two = (
        len(encode_conversation(self._chat, turns)[0])
        for turns in ([('a', 'a')], [('a', 'a'), (question, answer)])
      )
      return two - one

    noise = count(NOISE * _SAMPLE_SIZE) / _SAMPLE_SIZE
    ((key, value), *_) = pairs = _pairs(0, _SAMPLE_SIZE)
    (needle,) = draw_needles(np.random.default_rng(0), 1)
    asked = WORDINGS['kv_retrieval'].input.replace('{key}', key)
    # Of the first two, a text has a single question, which its prompt holds.
    sizes = {
      'passkey': noise,
      'number_string': noise,
      'kv_retrieval': count(_shown(pairs)) / _SAMPLE_SIZE,
      'needle': 1.0,
    }
    questions = {
      'passkey': 1,
      'number_string': 1,
      'kv_retrieval': count_turn(asked, value),
      # What is hidden for it too.
      'needle': count_turn(needle.question, needle.answer)
      + count(needle.sentence),
    }
    return sizes, questions

  def _check_smallest(self, task):
    longest = max(
      len(self._of(seed, task, 1).encoded[0]) for seed in range(_SMALLEST_TRIED)
    )
    if longest > self._config.max_len:
      raise ConfigError(
        f'max_len={self._config.max_len}: the smallest text of the task {task}'
        f' has {longest} tokens with its question. Raise it, or take the task'
        ' out'
      )


def _passkey(seed, size, max_questions, text) -> Turns:
  del max_questions, text
  return _hidden_key('passkey', seed, size)


def _number_string(seed, size, max_questions, text) -> Turns:
  del max_questions, text
  return _hidden_key('number_string', seed, size)


def _hidden_key(task, seed, size) -> Turns:
  """`size` lines of noise with a key at any depth."""
  rng = np.random.default_rng(seed)
  key, depth = draw_key(rng, task), rng.uniform()
  context = hide_key(task, key, size, int(depth * (size + 1)))
  wording = WORDINGS[task]
  asked = wording.prompt.format(context=context, input=wording.input)
  return [(asked, f'{wording.prefix} {key}')]


def _kv_retrieval(seed, size, max_questions, text) -> Turns:
  """`size` pairs, some of them asked for, in any order."""
  del text
  pairs = _pairs(seed, size)
  rng = np.random.default_rng((seed, 1))
  count = min(max_questions, size)
  chosen = rng.choice(size, count, replace=False).tolist()
  wording = WORDINGS['kv_retrieval']
  asked = [wording.input.replace('{key}', pairs[i][0]) for i in chosen]
  first = wording.prompt.format(context=_shown(pairs), input=asked[0])
  return [
    (question, pairs[i][1])
    for question, i in zip([first, *asked[1:]], chosen, strict=True)
  ]


def _pairs(seed, count) -> list[tuple[str, str]]:
  rng = np.random.default_rng((seed, 0))
  return [(draw_uuid(rng), draw_uuid(rng)) for _ in range(count)]


def _shown(pairs) -> str:
  return 'JSON data:\n' + json.dumps(dict(pairs))


def _needle(seed, size, max_questions, text) -> Turns:
  """`size` tokens of stored text with needles anywhere in it, all asked for."""
  rng = np.random.default_rng(seed)
  needles = draw_needles(rng, int(rng.integers(1, max_questions + 1)))
  start, depths = int(rng.integers(len(text))), rng.uniform(size=len(needles))
  words = re.findall(r'\s*\S+', text.read(start, size))
  places = [int(depth * (len(words) + 1)) for depth in depths]
  hidden = [[needle.sentence] for needle in needles]
  haystack = ''.join(hide_needles(words, hidden, places)).strip()
  turns = [(needle.question, needle.answer) for needle in needles]
  return [(f'{haystack}\n {turns[0][0]}', turns[0][1]), *turns[1:]]


# Task -> (seed, size, most questions, text for needles) -> turns.
TASKS: dict[str, Callable[[int, int, int, StoredText | None], Turns]] = {
  'passkey': _passkey,
  'number_string': _number_string,
  'kv_retrieval': _kv_retrieval,
  'needle': _needle,
}
