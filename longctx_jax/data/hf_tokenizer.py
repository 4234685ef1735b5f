"""Tokenizers of Hugging Face's `tokenizers` library: `tokenizer.json`.

That file says nothing of begin and end of a document: their names are in its
neighbours (see `tokenizer_files`). Its post-processor, truncation and padding
are left out: what surrounds a text is the config's choice. So is dropout of
merges: a corpus that is made again has the same tokens.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from longctx_jax.data.text_pieces import may_be_cut, pieces
from longctx_jax.data.tokenizer import (
  TokenizerError,
  encode_without_control,
  fingerprint_of,
  read_model,
)

# Given to the library at a time. ours: it takes 100 bytes and more for a token
# until all ids of a call are read; more at a time are no faster.
_CHARS_PER_CALL = 1_000_000


class HuggingFaceTokenizer:
  """A `tokenizer.json`; see `Tokenizer`.

  Control symbols are the file's special tokens, `added_tokens` (name -> id),
  and tokens that `control`, `bos_token` or `eos_token` names. Tokens that the
  file adds and does not call special, such as Qwen's `<tool_call>`, are text.

  Raises:
    TokenizerError: no such file, not a `tokenizer.json`, or one that has no
      place for `added_tokens`.
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
    self._path = path
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
    except Exception as error:  # the library raises nothing more precise
      raise TokenizerError(
        f'{path} is not a tokenizer.json of the tokenizers library:'
        f' {" ".join(str(error).split())}'
      ) from error
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.post_processor = None
    if hasattr(self._tokenizer.model, 'dropout'):
      self._tokenizer.model.dropout = None
    for name, i in sorted((added_tokens or {}).items(), key=lambda x: x[1]):
      if self._tokenizer.token_to_id(name) is None:
        self._make_special(name)
      found = self._tokenizer.token_to_id(name)
      if found != i:
        raise TokenizerError(
          f'{path}: the added token {name} has the id {found}, and its'
          f' neighbours say {i}'
        )
    for name in (*control, bos_token, eos_token):
      if name and self._tokenizer.token_to_id(name) is not None:
        self._make_special(name)
    # Special tokens in text are text. It is no part of a pickled copy.
    self._tokenizer.encode_special_tokens = True
    description = json.loads(model)
    unknown = _unknown_id(description['model'], self._tokenizer)
    added = self._tokenizer.get_added_tokens_decoder()
    self._may_cut = may_be_cut(description, added.values())
    self._control = {
      token.content: i
      for i, token in added.items()
      if token.special and i != unknown
    }
    self._control_ids = frozenset(self._control.values())
    self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
    self._is_control = np.zeros(self.vocab_size, bool)
    self._is_control[list(self._control_ids)] = True
    self.bos_id = self._control.get(bos_token)
    self.eos_id = self._control.get(eos_token)
    self.fingerprint = fingerprint_of(
      model, added_tokens or {}, bos_token, eos_token
    )

  def control_id(self, name: str) -> int | None:
    """Id of the control symbol `name`; None if there is no such symbol."""
    return self._control.get(name)

  def control_symbols(self) -> list[str]:
    """Names of all control symbols."""
    return list(self._control)

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text` [T] int32; no control symbol is among them."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, in as many threads as `THREADS` says.

    Raises:
      TokenizerError: the library gives up on a text.
    """
    batch = self._encoded(texts)
    for i, ids in enumerate(batch):
      if self._is_control[ids].any():
        without = encode_without_control(
          self._encode_ids, texts[i], self._control_ids
        )
        batch[i] = np.asarray(without, np.int32)
    return batch

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control symbols give nothing.

    Bytes that are not UTF-8, as at the edge of a slice, give U+FFFD.
    """
    ids = np.asarray(ids, np.int32).tolist()
    return self._tokenizer.decode(ids, skip_special_tokens=True)

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._tokenizer.encode_special_tokens = True

  def _make_special(self, name):
    token = tokenizers.AddedToken(name, special=True, normalized=False)
    self._tokenizer.add_special_tokens([token])

  def _encode_ids(self, text):
    return self._encoded([text])[0].tolist()

  def _encoded(self, texts):
    """Ids of each text [T] int32, as the library finds them."""
    parts = [list(pieces(text)) if self._may_cut else [text] for text in texts]
    found = []
    for batch in _batches(itertools.chain.from_iterable(parts)):
      found += self._in_library(batch)
    rest = iter(found)
    return [np.concatenate([next(rest) for _ in part]) for part in parts]

  def _in_library(self, texts):
    try:
      encoded = self._tokenizer.encode_batch_fast(
        texts, add_special_tokens=False
      )
    except BaseException as error:
      # Rust's panic is no Exception, and has no name to import. One is known:
      # Oniguruma's limit of ten million retries, reached by as many spaces.
      if type(error).__name__ != 'PanicException':
        raise
      longest = max(texts, key=len)
      raise TokenizerError(
        f'{self._path}: the tokenizers library gives up on a text ({error}),'
        f' likely on {len(longest)} characters that begin {longest[:40]!r}.'
        " Leave that document out, such as by its source's max_document_chars"
      ) from None
    return [np.asarray(each.ids, np.int32) for each in encoded]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
  """Texts in turn, a new batch when one has `_CHARS_PER_CALL`."""
  batch, chars = [], 0
  for text in texts:
    batch.append(text)
    chars += len(text)
    if chars >= _CHARS_PER_CALL:
      yield batch
      batch, chars = [], 0
  if batch:
    yield batch


def _unknown_id(model, tokenizer):
  """Id that text without a token of its own gets, special or not; or None."""
  if model.get('unk_token'):
    return tokenizer.token_to_id(model['unk_token'])
  return model.get('unk_id')  # Unigram
