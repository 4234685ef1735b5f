"""SentencePiece models, our own and others', and training one on a corpus.

A model that `train_sentencepiece` makes gives back exactly the text that went
in. Others may normalise it: Llama-2's puts a space before every text.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.tokenizer import (
  TokenizerError,
  encode_without_control,
  fingerprint_of,
  num_threads,
  read_model,
)

# SentencePiece writes a space as this character, and reads it back as one.
_SPACE_MARK = '\u2581'


class SentencePieceTokenizer:
  """A SentencePiece model file; see `Tokenizer`.

  Control symbols are those of the model, `added_tokens` (name -> id, behind the
  model's pieces), and pieces that `control` names. Begin and end of a document
  are the model's own, unless `bos_token` or `eos_token` names another.

  Raises:
    TokenizerError: no such file, or not a SentencePiece model.
  """

  def __init__(
    self,
    path: Path | str,
    *,
    added_tokens: Mapping[str, int] | None = None,
    bos_token: str = '',
    eos_token: str = '',
    control: Sequence[str] = (),
  ):
    model = read_model(path)
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
      # An empty file loads, and fails only when it is used.
      self._num_pieces = self._processor.vocab_size()
    except RuntimeError:
      self._num_pieces = 0
    if not self._num_pieces:
      raise TokenizerError(f'{path} is not a SentencePiece model')
    self._added = {
      name: i
      for name, i in (added_tokens or {}).items()
      if i >= self._num_pieces
    }
    self.vocab_size = max([self._num_pieces - 1, *self._added.values()]) + 1
    named = [
      self._processor.piece_to_id(name)
      for name in (*control, bos_token, eos_token)
      if name
    ]
    # Text could produce these, which the model takes for ordinary pieces.
    self._guarded_ids = frozenset(filter(self._is_ordinary, named))
    self.bos_id = self._begin_or_end(bos_token, self._processor.bos_id())
    self.eos_id = self._begin_or_end(eos_token, self._processor.eos_id())
    self.fingerprint = fingerprint_of(model, self._added, bos_token, eos_token)
    self._space_mark_ids = [
      self._processor.piece_to_id(f'<0x{byte:02X}>')
      for byte in _SPACE_MARK.encode()
    ]
    self._has_bytes = all(map(self._processor.is_byte, self._space_mark_ids))

  def control_id(self, name: str) -> int | None:
    """Id of the control symbol `name`; None if there is no such symbol."""
    if name in self._added:
      return self._added[name]
    i = self._processor.piece_to_id(name)
    is_control = i in self._guarded_ids or self._processor.is_control(i)
    # What is not there has the id of the unknown piece.
    return i if is_control and self._processor.id_to_piece(i) == name else None

  def control_symbols(self) -> list[str]:
    """Names of all control symbols."""
    names = map(self._processor.id_to_piece, range(self._num_pieces))
    return [
      name
      for name in (*names, *self._added)
      if self.control_id(name) is not None
    ]

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text` [T] int32; of our own models `decode` gives it back."""
    ids = encode_without_control(self._encode_ids, text, self._guarded_ids)
    return np.asarray(ids, np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, in as many threads as `THREADS` says."""
    parts = [self._parts(text) for text in texts]
    flat = [part for of_text in parts for part in of_text]
    encoded = iter(self._processor.encode(flat, num_threads=num_threads()))
    batch = []
    for text, of_text in zip(texts, parts, strict=True):
      ids = self._joined([next(encoded) for _ in of_text])
      if self._guarded_ids.isdisjoint(ids):
        batch.append(np.asarray(ids, np.int32))
      else:
        batch.append(self.encode(text))
    return batch

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control symbols give nothing.

    Bytes that are not UTF-8, as at the edge of a slice, give U+FFFD.
    """
    return self._processor.decode(
      [
        i
        for i in np.asarray(ids, np.int32).tolist()
        if i < self._num_pieces and i not in self._guarded_ids
      ]
    )

  def _is_ordinary(self, i):
    has = self._processor
    return not (has.is_unknown(i) or has.is_control(i) or has.is_byte(i))

  def _begin_or_end(self, name, own_id):
    if name and (i := self.control_id(name)) is not None:
      return i
    return own_id if own_id >= 0 else None

  def _encode_ids(self, text):
    return self._joined([self._processor.encode(p) for p in self._parts(text)])

  def _parts(self, text):
    # A literal space mark would come back as a space: it goes in as bytes.
    return text.split(_SPACE_MARK) if self._has_bytes else [text]

  def _joined(self, encoded):
    ids = encoded[0]
    for part in encoded[1:]:
      ids = [*ids, *self._space_mark_ids, *part]
    return ids


def train_sentencepiece(
  texts: Iterable[str],
  vocab_size: int,
  path: Path,
  *,
  control: Sequence[str] = TEMPLATES['plain'].control,
) -> SentencePieceTokenizer:
  """Trains a BPE model and writes it to `path`; same texts, same bytes.

  It has the control symbols `control`, beside begin and end of a document.

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
      control_symbols=list(control),
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
