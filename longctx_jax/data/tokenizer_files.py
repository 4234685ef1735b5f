"""Tokenizers on disk: which files there are, and what their neighbours say.

    tokenizer.json          of the `tokenizers` library; or
    tokenizer.model         of SentencePiece
    tokenizer_config.json   names the begin and end of a document
    added_tokens.json       {"[USER]": 65519}: tokens behind the model's own

These are the names of a Hugging Face model's folder; the last two files may be
missing.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from longctx_jax.data.tokenizer import (
  Tokenizer,
  TokenizerError,
  fingerprint_of,
  read_model,
)

_JSON, _MODEL = 'tokenizer.json', 'tokenizer.model'
_CONFIG, _ADDED = 'tokenizer_config.json', 'added_tokens.json'


def load_tokenizer(
  path: Path | str, *, control: Sequence[str] = ()
) -> Tokenizer:
  """The tokenizer of a folder, a `tokenizer.json` or a SentencePiece model.

  Of a folder that has both, `tokenizer.json` is taken, as Hugging Face does.
  `control` names symbols that no text may encode to, whatever the file says.

  Raises:
    TokenizerError: there is none, or a file is damaged.
  """
  path = tokenizer_file(path)
  kind = (
    HuggingFaceTokenizer if path.suffix == '.json' else SentencePieceTokenizer
  )
  beside = _read_beside(path.parent)
  return kind(path, control=control, **beside._asdict())


def tokenizer_fingerprint(path: Path | str) -> str:
  """Changes with any file that `load_tokenizer` reads, and loads none.

  Raises:
    TokenizerError: there is none.
  """
  path = tokenizer_file(path)
  beside = _read_beside(path.parent)
  return fingerprint_of(
    read_model(path), beside.added_tokens, beside.bos_token, beside.eos_token
  )


def tokenizer_file(path: Path | str) -> Path:
  """The model file that `path`, a file or a folder, stands for."""
  path = Path(path)
  if not path.is_dir():
    return path
  for name in (_JSON, _MODEL):
    if (path / name).is_file():
      return path / name
  raise TokenizerError(
    f'the folder {path} holds neither {_JSON} nor {_MODEL}: name the file'
  )


def copy_tokenizer(
  path: Path | str,
  directory: Path,
  *,
  added_tokens: Sequence[str] = (),
  bos_token: str = '',
  eos_token: str = '',
) -> None:
  """Copies the files of a tokenizer, with more tokens and other names.

  `added_tokens` that are not there come behind the last id, in their order;
  '' leaves the begin or the end of a document as it is.

  Raises:
    TokenizerError: as `load_tokenizer`; or a name is no token of it.
  """
  there = load_tokenizer(path, control=added_tokens)
  path = tokenizer_file(path)
  beside = _read_beside(path.parent)
  new = [name for name in added_tokens if there.control_id(name) is None]
  added = beside.added_tokens | {
    name: there.vocab_size + k for k, name in enumerate(new)
  }
  shutil.copyfile(
    path, directory / (_JSON if path.suffix == '.json' else _MODEL)
  )
  if added:
    (directory / _ADDED).write_text(json.dumps(added))
  names = {
    'bos_token': bos_token or beside.bos_token,
    'eos_token': eos_token or beside.eos_token,
  }
  if any(names.values()):
    (directory / _CONFIG).write_text(json.dumps(names))
  made = load_tokenizer(directory)
  for field, name in (('bos_token', bos_token), ('eos_token', eos_token)):
    if name and made.control_id(name) is None:
      raise TokenizerError(
        f'corpus.{field}={name}: {path} has no such token; name one that it'
        ' has, or add it with corpus.added_tokens'
      )


class _Beside(NamedTuple):
  """What the files beside a model say; '' and {} is nothing."""

  bos_token: str
  eos_token: str
  added_tokens: dict[str, int]


def _read_beside(directory: Path) -> _Beside:
  path = directory / _CONFIG
  try:
    fields = _read_json(path)
    # Hugging Face keeps added tokens in two places; those of the model itself
    # may be among them.
    listed = fields.get('added_tokens_decoder', {}).items()
    added = {_token_name(token): int(i) for i, token in listed}
    names = [_token_name(fields.get(f)) for f in ('bos_token', 'eos_token')]
    path = directory / _ADDED
    added |= {name: int(i) for name, i in _read_json(path).items()}
  except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
    raise TokenizerError(f'cannot read {path}: {error!r}') from error
  return _Beside(*names, added)


def _read_json(path) -> dict[str, Any]:
  """A JSON object; {} where there is no such file."""
  return json.loads(path.read_text('utf-8')) if path.is_file() else {}


def _token_name(token) -> str:
  """A token is named by text, by {'content': text}, or by null: it has none."""
  name = '' if token is None else token
  name = name if isinstance(name, str) else name['content']
  if not isinstance(name, str):
    raise TypeError(f'{name!r} is no name of a token')
  return name
