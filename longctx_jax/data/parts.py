"""What readers of documents share: parts, documents, and what goes wrong.

A source is listed once as *parts*, each of which any process can read alone:

    texts/a.jsonl, 150 MB  ->  a.jsonl [0, 64 MB) [64, 128 MB) [128 MB, ...)
    texts/b.jsonl.gz       ->  b.jsonl.gz, as a whole
                                    |
                               read_part(part) -> Document | Problem, in order

What a part holds, and the names in it, depend on the source alone: cut into
other parts, a source gives the same documents in the same order.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource

# ours: a minute of work or less, and a thousand parts for 64 GB.
PART_BYTES = 64 << 20


class Document(NamedTuple):
  """One text; `name` is unique within its source, unless `name_field` names it.

  Documents of one name are held out together.
  """

  name: str
  domain: str
  text: str


class Problem(NamedTuple):
  """What took a document's place: something that cannot be read.

  Kinds: bad_json, bad_utf8, no_text_field, no_name_field, empty, too_large (a
  document); binary (a file of a source tree); unreadable, damaged,
  expands_too_much (the rest of a file, whose documents nobody can count).
  """

  name: str
  kind: str
  message: str  # names the file and the place in it


class Part(NamedTuple):
  """A share of a source's documents; may be pickled."""

  source: TextSource
  domain: str
  name: str  # what the names of its documents begin with
  path: str = ''
  # Bytes, row groups or records of `path`: those that begin in [start, stop).
  start: int = 0
  stop: int = 0


class DocumentError(ConfigError):
  """A document that cannot be read, where the config says to stop."""


class BadRecord(Exception):  # noqa: N818 (a finding on its way to a Problem)
  """Raised while one document is read, and turned into its `Problem`."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


def read_item(
  part: Part,
  place: str,
  load: Callable[[], tuple[str | None, str]],
  where: Callable[[], str],
) -> Document | Problem:
  """The document that `load` gives as (name, text), or its problem.

  Args:
    place: the name of a document without one of its own.
    where: called for a problem only; the file and the place in it.
  """
  try:
    name, text = load()
  except BadRecord as bad:
    return Problem(place, bad.kind, f'{where()}: {bad}')
  return Document(place if name is None else name, part.domain, text)


def text_from(content: object, source: TextSource) -> str:
  """The text of a document from its bytes, or from a string, checked.

  Raises:
    BadRecord: it is no text, empty, too long, or not UTF-8.
  """
  limit = source.max_document_chars
  if isinstance(content, bytes):
    if len(content) > 4 * limit:  # the most that so many characters take
      raise too_large(source)
    try:
      content = content.decode('utf-8', 'strict')
    except UnicodeDecodeError as error:
      if source.errors == 'problem':
        raise BadRecord(
          'bad_utf8',
          f'byte {error.start} of it is not UTF-8 ({error.reason});'
          " errors='replace' puts U+FFFD in its place",
        ) from None
      content = content.decode('utf-8', 'replace')
  elif isinstance(content, str) and not content.isascii():
    content = _without_surrogates(content, source)
  if not isinstance(content, str):
    raise BadRecord(
      'no_text_field',
      f'its field {source.text_field!r} is'
      f' {"absent" if content is None else type(content).__name__}, not text',
    )
  content = content.removeprefix('\ufeff')
  if len(content) > limit:
    raise too_large(source)
  if not content or content.isspace():
    raise BadRecord('empty', 'it has no text')
  return content


def name_from(value: object, source: TextSource) -> str | None:
  """A document's name from its record's `name_field`; None if it has no say.

  Raises:
    BadRecord: the field is absent, or neither text nor a whole number.
  """
  if not source.name_field:
    return None
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'backslashreplace')
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise BadRecord(
      'no_name_field',
      f'its field {source.name_field!r} is'
      f' {"absent" if value is None else type(value).__name__}, not a name',
    )
  return printable(f'{source.kind}/{value}')


def too_large(source: TextSource) -> BadRecord:
  """The problem of a document above `source.max_document_chars`."""
  return BadRecord(
    'too_large',
    f'it has more than max_document_chars={source.max_document_chars}',
  )


def reason(error: Exception, silent: str) -> str:
  """What an error says, to go on behind; `silent` if it says nothing."""
  return str(error).strip(' .\n') or silent


def printable(name: str) -> str:
  """`name` without what UTF-8 cannot hold, such as odd bytes of file names."""
  return name.encode('utf-8', 'backslashreplace').decode()


def import_optional(module: str, kind: str) -> ModuleType:
  """Imports what only sources of `kind` need.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ConfigError(
      f'kind={kind!r} needs {module} ({error}): pip install'
      " 'longctx_jax[formats]'"
    ) from error


def _without_surrogates(text, source):
  """JSON may escape half a character, which no UTF-8 and no tokenizer holds."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    if source.errors == 'problem':
      raise BadRecord(
        'bad_utf8',
        f'character {error.start} of it is half a surrogate pair;'
        " errors='replace' puts U+FFFD in its place",
      ) from None
    return ''.join('\ufffd' if 0xD800 <= ord(c) < 0xE000 else c for c in text)
  return text
