"""Tokenizers: text to ids and back, exactly; and training one on a corpus.

Markers of a chat are *control* symbols: `encode` can never produce them, so a
user who types `<|end|>` ends nothing.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

_CHAT_SYMBOLS = ('<|user|>', '<|assistant|>', '<|end|>')
# SentencePiece writes a space as this character, and reads it back as one.
_SPACE_MARK = '\u2581'


class TokenizerError(ValueError):
  """A tokenizer that cannot be had; the message names it and says why."""


class Tokenizer(Protocol):
  """What the package asks of a tokenizer."""

  vocab_size: int
  # Twelve hex digits that change with the model.
  fingerprint: str
  pad_id: int  # 0
  bos_id: int
  eos_id: int  # end of a document
  user_id: int  # starts what the user says
  assistant_id: int  # starts what the model says
  end_id: int  # ends either

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text` [T] int32; no control symbol is among them."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control symbols give nothing."""


class SentencePieceTokenizer:
  """A SentencePiece model file with the control symbols of `Tokenizer`.

  Raises:
    TokenizerError: no such file, not a SentencePiece model, or one without
      the control symbols or without byte fallback.
  """

  def __init__(self, path: Path | str):
    try:
      model = Path(path).read_bytes()
    except OSError as error:
      raise TokenizerError(
        f'cannot read the tokenizer {path}: {error.strerror}'
      ) from error
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
      # An empty file loads, and fails only when it is used.
      self.vocab_size = self._processor.vocab_size()
    except RuntimeError:
      self.vocab_size = 0
    if not self.vocab_size:
      raise TokenizerError(f'{path} is not a SentencePiece model')
    self.fingerprint = hashlib.sha256(model).hexdigest()[:12]
    self.pad_id = self._processor.pad_id()
    self.bos_id = self._processor.bos_id()
    self.eos_id = self._processor.eos_id()
    chat_ids = [self._processor.piece_to_id(s) for s in _CHAT_SYMBOLS]
    self.user_id, self.assistant_id, self.end_id = chat_ids
    absent = [
      symbol
      for symbol, i in zip(_CHAT_SYMBOLS, chat_ids, strict=True)
      if not self._processor.is_control(i)
    ]
    absent += ['bos'] * (self.bos_id < 0) + ['eos'] * (self.eos_id < 0)
    absent += ['pad with id 0'] * (self.pad_id != 0)
    self._space_mark_ids = [
      self._processor.piece_to_id(f'<0x{byte:02X}>')
      for byte in _SPACE_MARK.encode()
    ]
    if not all(map(self._processor.is_byte, self._space_mark_ids)):
      absent.append('bytes')
    if absent:
      raise TokenizerError(
        f'{path} lacks the symbols {", ".join(absent)}. Train a tokenizer with'
        ' longctx_jax.data.tokenizer.train_sentencepiece, which adds them'
      )

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text` [T] int32; `decode` gives back exactly `text`."""
    # A literal space mark would come back as a space: it goes in as bytes.
    first, *rest = text.split(_SPACE_MARK)
    ids = self._processor.encode(first)
    for part in rest:
      ids += self._space_mark_ids + self._processor.encode(part)
    return np.asarray(ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control symbols give nothing.

    Bytes that are not UTF-8, as at the edge of a slice, give U+FFFD.
    """
    return self._processor.decode(np.asarray(ids, np.int32).tolist())


def train_sentencepiece(
  texts: Iterable[str], vocab_size: int, path: Path
) -> SentencePieceTokenizer:
  """Trains a BPE model and writes it to `path`; same texts, same bytes.

  Raises:
    TokenizerError: the texts yield fewer than `vocab_size` pieces, or
      `vocab_size` has no room for bytes, control symbols and letters.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_sentences(texts),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      # Text comes back as it went in, the indents of code included.
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      # Numbers are read digit by digit, as in Llama (arXiv:2302.13971, sec.
      # 2.1): equal digits stay equal tokens in needles and tables.
      split_digits=True,
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      control_symbols=list(_CHAT_SYMBOLS),
      # Training sees lines, and would never learn what ends them.
      user_defined_symbols=['\n'],
      minloglevel=2,
    )
  except RuntimeError as error:
    raise TokenizerError(_explain(str(error), vocab_size)) from error
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  try:
    partial.write_bytes(model.getvalue())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return SentencePieceTokenizer(path)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Lines, cut into parts that the trainer accepts (4,192 bytes at most)."""
  max_chars = 4_192 // 4  # a character takes four bytes of UTF-8 at most
  for text in texts:
    for line in text.split('\n'):
      for start in range(0, len(line), max_chars):
        yield line[start : start + max_chars]


def _explain(error: str, vocab_size: int) -> str:
  if match := re.search(r'value <= (\d+)', error):
    return (
      f'too little text for corpus.vocab_size={vocab_size}: it yields'
      f' {match[1]} pieces. Raise max_chars of the sources or set'
      f' corpus.vocab_size={match[1]} or less'
    )
  if match := re.search(r'\d+ vs (\d+)', error):
    return (
      f'corpus.vocab_size={vocab_size} is too small: 256 bytes, the control'
      f' symbols and the letters of this text alone are {match[1]} pieces. Set'
      f' corpus.vocab_size={match[1]} or more'
    )
  if 'sentences_.empty()' in error:
    return 'there is no text to train a tokenizer on'
  return f'SentencePiece could not train a tokenizer: {error}'
