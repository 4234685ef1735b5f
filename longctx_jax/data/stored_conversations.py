"""Conversations of a corpus, tokenised: made from documents, and from files."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data.chat import (
  Chat,
  Conversation,
  cut_conversation,
  encode_conversations,
)
from longctx_jax.data.conversation_files import LeftOut, read_conversations
from longctx_jax.data.counts import Counts
from longctx_jax.data.documents import Document
from longctx_jax.data.instructions import (
  FROM_CODE,
  FROM_PROSE,
  make_conversations,
)
from longctx_jax.data.store_writer import StoredDocument

log = logging.getLogger(__name__)

# ours: a little below what real text has, so that most conversations fit.
CHARS_PER_TOKEN = 2
# ours: keeps the cores busy, and is little memory.
CONVERSATIONS_PER_BATCH = 1_000


class _Source(NamedTuple):
  """Conversations of one name, and what to do with those that are too long."""

  conversations: Iterator[Conversation]
  on_long: str
  left_out: LeftOut  # grows as they are read


def stored_conversations(
  config: CorpusConfig,
  chat: Chat,
  documents: list[Document],
  seed: int,
  accounts: dict[str, Counts],
) -> Iterator[StoredDocument]:
  """All conversations by name, none longer than `config` lets its kind be.

  There are none if `config` asks for none.

  Args:
    accounts: gets what became of those of each name, characters uncounted.

  Raises:
    ConfigError: there are none of those asked for, or a file or record is
      refused; see `read_conversations`.
  """
  sources = _made(config, documents, seed) | _from_files(config)
  total = Counter()
  for name, source in sources.items():
    counts = Counter()
    yield from _tokenised(config, chat, name, source, counts)
    total += counts
    accounts[name] = _account(counts, source)
    log.info('corpus: conversations of %s: %s', name, _shown(counts, source))
  if config.asks_for_conversations and not total['kept']:
    raise ConfigError(_none_made(config, total, sources))


def _made(config, documents, seed) -> dict[str, _Source]:
  """Those of `config.conversations`, of as many characters as might fit."""
  is_code = {
    name: source.kind in ('stdlib', 'packages')
    for name, source in config.sources.items()
  }
  max_chars = CHARS_PER_TOKEN * config.max_conversation_len

  def made(k, kind, count):
    used = [
      document
      for document in documents
      if kind not in (FROM_PROSE if is_code[document.domain] else FROM_CODE)
    ]
    rng = np.random.default_rng((seed, k))
    turns = make_conversations(kind, used, count, rng, max_chars=max_chars)
    yield from map(Conversation, turns)

  return {
    kind: _Source(made(k, kind, count), 'drop', LeftOut())
    for k, (kind, count) in enumerate(sorted(config.conversations.items()))
  }


def _from_files(config) -> dict[str, _Source]:
  sources = {}
  for name, files in sorted(config.conversation_files.items()):
    field, left_out = f'corpus.conversation_files.{name}', LeftOut()
    read = read_conversations(files, field, left_out)
    sources[name] = _Source(read, files.on_long, left_out)
  return sources


def _tokenised(config, chat, name, source, counts) -> Iterator[StoredDocument]:
  numbered = enumerate(source.conversations)
  field, max_len = config.longest_conversation(name)
  while batch := list(itertools.islice(numbered, CONVERSATIONS_PER_BATCH)):
    encoded = encode_conversations(chat, [one for _, one in batch])
    for (i, _), (tokens, mask) in zip(batch, encoded, strict=True):
      if len(tokens) > max_len:
        if source.on_long == 'stop':
          raise ConfigError(
            f'corpus.conversation_files.{name}: conversation {i + 1} has'
            f' {len(tokens)} tokens, more than corpus.{field}='
            f'{max_len}: raise that, or set on_long to truncate or drop'
          )
        cut = None
        if source.on_long == 'truncate':
          cut = cut_conversation(tokens, mask, max_len)
        counts['dropped' if cut is None else 'truncated'] += 1
        if cut is None:
          continue
        tokens, mask = cut
      counts['kept'] += 1
      yield StoredDocument(f'{name}/{i}', name, tokens, mask)


def _account(counts, source) -> Counts:
  ends = Counter(kept=counts['kept'], too_long=counts['dropped'])
  ends += source.left_out.records
  return Counts(Counter(seen=ends.total()) + ends)


def _shown(counts, source) -> str:
  """'40 kept (2 of them truncated), 1 dropped as too long, ...'."""
  shown = [f'{counts["kept"]} kept']
  if counts['truncated']:
    shown[0] += f' ({counts["truncated"]} of them truncated)'
  if counts['dropped']:
    shown.append(f'{counts["dropped"]} dropped as too long')
  problems = sorted(source.left_out.records.items())
  shown += [f'{n} skipped: {problem}' for problem, n in problems]
  if source.left_out.questions:
    shown.append(f'{source.left_out.questions} cut by an unanswered question')
  return ', '.join(shown)


def _none_made(config, total, sources) -> str:
  problems = sum((s.left_out.records for s in sources.values()), Counter())
  skipped = ''.join(f', {n} skipped: {p}' for p, n in problems.items())
  names = ', '.join(sources)
  return (
    f'corpus.conversations and conversation_files ({names}): none is of at most'
    f' corpus.max_conversation_len={config.max_conversation_len} tokens'
    f' ({total["dropped"]} are longer{skipped}). {" and ".join(FROM_CODE)} need'
    f' a source of kind stdlib or packages, {" and ".join(FROM_PROSE)} one of'
    ' another kind'
  )
