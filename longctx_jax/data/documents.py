"""Documents: a fair sample of a source, and which of them are held out.

The order of a source is fixed by a hash of each document's name, so that a
prefix of any length is a fair sample of the whole. Which documents are held
out for evaluation depends on another hash of the name: whole documents, the
same ones at every corpus size.
"""

import hashlib
import heapq
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import DocumentFilters, TextSource
from longctx_jax.data.counts import Counts
from longctx_jax.data.document_filters import stored_text
from longctx_jax.data.parts import Document, Problem
from longctx_jax.data.readers import ONE_PER_PART, list_parts, read_part

_logger = logging.getLogger(__name__)


def read_documents(
  source: TextSource, domain: str, cache_dir: Path
) -> list[Document]:
  """Documents of `source`, `source.max_chars` characters at most in all.

  The same environment gives the same documents in the same order. One
  document takes a quarter of `max_chars` at most, cut at a line end: the
  largest packages are longer than a small corpus, and a domain of one document
  leaves nothing to hold out. The log names what could not be read, in one line
  for each kind of problem.

  Raises:
    ConfigError: there is nothing to read at `source.path`, or no text in it; or
      a document cannot be read and `source.on_problem` is 'stop'.
  """
  return sample_documents(source, domain, cache_dir)[0]


def sample_documents(
  source: TextSource,
  domain: str,
  cache_dir: Path,
  *,
  least_chars: int = DocumentFilters.min_chars,
) -> tuple[list[Document], Counts]:
  """`read_documents`, and what became of those that are not among them.

  Texts shorter than `least_chars` are left out, and so is what a cut leaves of
  one.

  Where one part is one document, parts are read in order until `max_chars` is
  reached. Else all are read, and no more than `max_chars` are held at a time.
  """
  sample = _Sample(source, least_chars)
  problems = {}
  parts = list_parts(source, domain, cache_dir)
  in_order = source.kind in ONE_PER_PART
  if in_order:
    parts.sort(key=lambda part: order_of(part.name))
  for part in parts:
    if in_order and sample.is_full():
      # Seen by its name alone.
      sample.counts.see()
      sample.counts.drop('over_budget')
      continue
    for item in read_part(part):
      if isinstance(item, Problem):
        sample.counts.see()
        sample.counts.drop(item.kind)
        problems.setdefault(item.kind, item.message)
      else:
        sample.add(item)
  documents, counts = sample.finish()
  counts.check()
  check_text_field(source, counts, problems)
  for kind, message in problems.items():
    _logger.warning(
      'corpus: %d documents of %s left out as %s, the first: %s',
      counts.documents[kind],
      domain,
      kind,
      message,
    )
  return documents, counts


def check_text_field(
  source: TextSource, counts: Counts, problems: Mapping[str, str]
) -> None:
  """Raises ConfigError if not one record of a source has its text field.

  Args:
    problems: kind -> the first message.
  """
  unread = counts.documents
  if 0 < unread['no_text_field'] == unread['seen']:
    raise ConfigError(
      f'text_field={source.text_field!r}: none of {unread["seen"]} records of'
      f' {source.path} has text in it; {problems["no_text_field"]}'
    )


class _Sample:
  """The first documents in the order of hashes, whatever order they come in.

  Holds no more than can be among them: `max_chars`, and one document.
  """

  def __init__(self, source, least_chars):
    self.counts = Counts()
    self._source, self._max_chars = source, source.max_chars
    self._least_chars = least_chars
    self._held = []  # a heap, the last document in the order first
    self._num_chars = 0

  def add(self, document: Document):
    self.counts.see(len(document.text))
    text = stored_text(document.text, self._source)
    self.counts.trim('line_ends', len(document.text) - len(text))
    shorter = cut_text(text, self._max_chars // 4)
    if len(shorter) < self._least_chars:
      self.counts.drop('too_short', len(text))
      return
    self.counts.trim('cut', len(text) - len(shorter))
    document = document._replace(text=shorter)
    # The number of those before decides between documents of one name.
    key = (-order_of(document.name), -self.counts.documents['seen'])
    heapq.heappush(self._held, (key, document))
    self._num_chars += len(shorter)
    # The last is out of reach where all before it fill the budget.
    while self._num_chars - len(self._held[0][1].text) >= self._max_chars:
      self._drop_last()

  def is_full(self) -> bool:
    """Whether no document that comes later in the order has a place left."""
    return self._max_chars - self._num_chars < self._least_chars

  def finish(self) -> tuple[list[Document], Counts]:
    """All documents in order; the last may be cut to fit."""
    excess = self._num_chars - self._max_chars
    if excess > 0:
      key, last = heapq.heappop(self._held)
      text = cut_text(last.text, len(last.text) - excess)
      if len(text) < self._least_chars:
        self.counts.drop('over_budget', len(last.text))
      else:
        self.counts.trim('cut', len(last.text) - len(text))
        heapq.heappush(self._held, (key, last._replace(text=text)))
    documents = [document for _, document in sorted(self._held, reverse=True)]
    for document in documents:
      self.counts.keep(len(document.text))
    return documents, self.counts

  def _drop_last(self):
    _, document = heapq.heappop(self._held)
    self._num_chars -= len(document.text)
    self.counts.drop('over_budget', len(document.text))


def order_of(name: str) -> float:
  """A document's place in the order of its source, in [0, 1)."""
  return _hash('order', name)


def is_heldout(name: str, heldout_frac: float) -> bool:
  """Whether the document `name` is kept from training.

  A larger fraction holds out the same documents and more. The docstrings of a
  module share its fate: they are in its source too.
  """
  group = re.sub(r'^docs/modules/(\w+).*', r'stdlib/\1', name)
  return _hash('heldout', group) < heldout_frac


def _hash(purpose, name):
  """A number in [0, 1) that depends on nothing else.

  Each purpose has its own: were the order and the held-out set decided by one
  number, a prefix would consist of held-out documents.
  """
  digest = hashlib.sha256(f'{purpose}:{name}'.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def cut_text(text: str, limit: int) -> str:
  """The first `limit` characters at most, cut at a line end if there is one."""
  if len(text) <= limit:
    return text
  # A text of one line has no line end to cut at.
  return text[: text.rfind('\n', 0, limit) + 1 or limit]
