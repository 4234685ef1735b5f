"""Conversations to tokens, with loss on the assistant's turns alone.

    <bos><|user|> What is 2+2?<|assistant|> 4<|end|>
      0     0      0  0  0  0       0       1   1      loss mask

Markers are those of a template. What the model writes is encoded apart from
what stands before it, as it is when the model goes on from a prompt.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from longctx_jax.data.chat_templates import ChatTemplate
from longctx_jax.data.tokenizer import Tokenizer, TokenizerError


class Conversation(NamedTuple):
  """Turns of a user and an assistant; '' is no system's text."""

  turns: Sequence[tuple[str, str]]  # (user, assistant)
  system: str = ''


class _Frame(NamedTuple):
  """`<|im_start|>user\\n{text}<|im_end|>` as ids and the text beside `{text}`.

  The tokenizer has to see that text and the turn's as one.
  """

  before: list[int]
  left: str
  right: str
  after: list[int]


class Chat:
  """A tokenizer and the template of its conversations.

  Attributes:
    opening: ids before the first text of a conversation without a system.
    asking: ids after a user's text, up to where the answer begins.
    ends: ids that end what a model writes, a document or an answer.
    symbols: names of control symbols by id; to people, for they have no text.

  Raises:
    TokenizerError: the tokenizer lacks tokens of the template.
  """

  def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
    self.tokenizer, self._template = tokenizer, template
    self._ids = {name: tokenizer.control_id(name) for name in template.control}
    self._ids |= {'{bos}': tokenizer.bos_id, '{eos}': tokenizer.eos_id}
    self._check_ids()
    # A marker of the template may be the end of a document too.
    named = [(self._ids['{bos}'], '<bos>'), (self._ids['{eos}'], '<eos>')]
    named += [(self._ids[name], name) for name in template.control]
    self.symbols = {i: name for i, name in named if i is not None}
    self._system = self._frame(template.opening_with_system)
    self._user = self._frame(template.user)
    self._answer = self._frame(template.answer)
    self._begin = self._encode(template.opening)
    before_answer = self._encode(template.before_answer)
    self._asking = [*self._user.after, *before_answer]
    self._after_answer = self._encode(template.after_answer)
    self.opening = [*self._begin, *self._user.before]
    self.opening += self._encode(self._user.left)
    self.asking = [*self._encode(self._user.right), *self._asking]
    ends = [tokenizer.eos_id, *self._answer.after[-1:]]
    self.ends = tuple(dict.fromkeys(i for i in ends if i is not None))
    described = f'{tokenizer.fingerprint} {template}'
    self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:12]

  def encode_text(self, text: str) -> list[int]:
    """Ids of a turn's text alone."""
    return self.tokenizer.encode(self._prepared(text)).tolist()

  def encode_answer(self, text: str) -> list[int]:
    """Ids of an assistant's text, with the end that the model must give."""
    body = self.tokenizer.encode(self._filled(self._answer, text))
    return [*body.tolist(), *self._answer.after]

  def parts(self, conversation: Conversation) -> Iterator[tuple]:
    """(ids or a text, whether it is trained on), one after the other."""
    begin = self._begin
    if conversation.system:
      yield self._system.before, False
      yield self._filled(self._system, conversation.system), False
      begin = self._system.after
    for user, assistant in conversation.turns:
      yield begin + self._user.before, False
      yield self._filled(self._user, user), False
      yield self._asking, False
      yield self._filled(self._answer, assistant), True
      yield self._answer.after, True
      begin = self._after_answer
    yield begin, False

  def _check_ids(self):
    strings = [v for v in vars(self._template).values() if isinstance(v, str)]
    absent = [
      name.strip('{}')
      for name, i in self._ids.items()
      if i is None and any(name in string for string in strings)
    ]
    if absent:
      raise TokenizerError(
        f'the tokenizer lacks {", ".join(absent)}, which the chat template'
        ' needs: choose another corpus.chat_template, or name these in'
        ' corpus.added_tokens (bos and eos by corpus.bos_token and eos_token)'
      )

  def _frame(self, marked) -> _Frame:
    before, after = marked.split('{text}')
    *ids_before, left = self._split(before)
    right, *ids_after = self._split(after)
    ids = self._encode(ids_before), self._encode(ids_after)
    return _Frame(ids[0], left, right, ids[1])

  def _split(self, marked) -> list[str]:
    """Texts and markers by turns: 'a<|end|>b' -> ['a', '<|end|>', 'b']."""
    names = '|'.join(map(re.escape, self._ids))
    return re.split(f'({names})', marked)

  def _encode(self, marked) -> list[int]:
    """Ids of markers and of the text between them; of parts or of a whole."""
    ids = []
    for part in self._split(''.join(marked)):
      if part in self._ids:
        ids.append(self._ids[part])
      else:
        ids += self.tokenizer.encode(part).tolist()
    return ids

  def _filled(self, frame, text) -> str:
    return frame.left + self._prepared(text) + frame.right

  def _prepared(self, text) -> str:
    text = text.strip() if self._template.strip else text
    return self._template.text_prefix + text


def encode_conversation(
  chat: Chat, turns: Sequence[tuple[str, str]], system: str = ''
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens (int32) and loss mask (bool) of (user, assistant) turns."""
  return next(encode_conversations(chat, [Conversation(turns, system)]))


def encode_conversations(
  chat: Chat, conversations: Iterable[Conversation]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """`encode_conversation` of each, their texts encoded on several cores."""
  parts = [list(chat.parts(conversation)) for conversation in conversations]
  texts = [part for of_one in parts for part, _ in of_one if type(part) is str]
  encoded = iter(chat.tokenizer.encode_batch(texts))
  for of_one in parts:
    ids = [next(encoded) if type(p) is str else p for p, _ in of_one]
    trained = [trained for _, trained in of_one]
    tokens = np.concatenate(ids).astype(np.int32)
    yield tokens, np.repeat(trained, list(map(len, ids)))


def cut_conversation(
  tokens: np.ndarray, mask: np.ndarray, max_len: int
) -> tuple[np.ndarray, np.ndarray] | None:
  """The first turns of a conversation that are `max_len` tokens at most.

  u u A A A u A A      max_len=8  u u A A A u A A
                               7  u u A A A
                               4  u u A A      not even one turn fits: its
                                               answer is cut, and has no end
                               2  None         nothing to train on
  """
  if len(tokens) <= max_len:
    return tokens, mask
  ends = np.flatnonzero(np.diff(mask.astype(np.int8), append=0) == -1) + 1
  whole = ends[ends <= max_len]
  stop = int(whole[-1]) if len(whole) else max_len
  return (tokens[:stop], mask[:stop]) if mask[:stop].any() else None
