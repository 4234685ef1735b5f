"""What the package asks of a tokenizer: text to ids and back.

Control symbols (the begin and end of a document, the markers of a chat) are
ids that no text encodes to: a user who types `<|end|>` ends nothing. There are
two kinds, SentencePiece models and Hugging Face's `tokenizer.json`; either is
opened by `tokenizer_files.load_tokenizer`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

# Threads of `encode_batch`; by default as many as there are cores. The
# tokenizers library obeys it, and so do SentencePiece models here.
THREADS = 'RAYON_NUM_THREADS'


class TokenizerError(ValueError):
  """A tokenizer that cannot be had, or fails; the message says why."""


class Tokenizer(Protocol):
  """What the package asks of a tokenizer."""

  # One more than the largest id.
  vocab_size: int
  # Twelve hex digits that change with the tokenizer.
  fingerprint: str
  bos_id: int | None  # begin of a document; None: the tokenizer has none
  eos_id: int | None  # end of a document

  def control_id(self, name: str) -> int | None:
    """Id of the control symbol `name`; None if there is no such symbol."""

  def control_symbols(self) -> list[str]:
    """Names of all control symbols."""

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text` [T] int32; no control symbol is among them."""

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, in as many threads as `THREADS` says."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control symbols give nothing."""


def read_model(path: Path | str) -> bytes:
  """A tokenizer's file; TokenizerError if it cannot be read."""
  try:
    return Path(path).read_bytes()
  except OSError as error:
    raise TokenizerError(
      f'cannot read the tokenizer {path}: {error.strerror}'
    ) from error


def num_threads() -> int:
  """What `THREADS` says, or -1: as many as there are cores."""
  number = os.environ.get(THREADS, '')
  # As Rayon reads it.
  return int(number) if number.isdecimal() and int(number) else -1


def encode_without_control(
  encode: Callable[[str], list[int]], text: str, control_ids: frozenset[int]
) -> list[int]:
  """Ids of `text`, cut in two, and again, until no control symbol is formed.

      'say <s>'  ->  ids of 'say' + ids of ' <s>'  ->  ... + ' <' + 's>'

  Libraries are told not to look for control symbols in text. This catches the
  text that spells one all the same: a word of the vocabulary, a merge, or what
  a normaliser makes of other characters.
  """
  ids = encode(text)
  if control_ids.isdisjoint(ids):
    return ids
  if len(text) < 2:
    return [i for i in ids if i not in control_ids]
  middle = len(text) // 2
  return [
    *encode_without_control(encode, text[:middle], control_ids),
    *encode_without_control(encode, text[middle:], control_ids),
  ]


def fingerprint_of(
  model: bytes, added: Mapping[str, int], bos_token: str, eos_token: str
) -> str:
  """Twelve hex digits of a model file and what is set beside it, if any is."""
  beside = json.dumps([dict(sorted(added.items())), bos_token, eos_token])
  anything = added or bos_token or eos_token
  return hashlib.sha256(model + beside.encode() * bool(anything)).hexdigest()[
    :12
  ]
