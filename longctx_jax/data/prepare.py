"""Documents to a corpus on disk: tokenizer, stores, instruction data.

    corpus/tokenizer.model   trained on the corpus, unless one is given
    corpus/documents/        training documents, tokenised
    corpus/heldout/          documents kept from training, by a hash of the name
    corpus/conversations/    instruction data, from files and from training
                             documents; empty if none is asked for

The directory appears under its name only when all of it is written.
"""

import contextlib
import logging
import shutil
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longctx_jax.cache_dir import cache_dir
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data import synthetic_tables
from longctx_jax.data.chat import Chat
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.corpus_inputs import check_inputs, naming_source
from longctx_jax.data.corpus_settings import corpus_settings, settings_there
from longctx_jax.data.counts import HELDOUT, Counts
from longctx_jax.data.disk import publish
from longctx_jax.data.document_filters import fit_length, text_key
from longctx_jax.data.documents import Document, is_heldout, sample_documents
from longctx_jax.data.sentencepiece_tokenizer import train_sentencepiece
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_writer import StoredDocument, write_store
from longctx_jax.data.stored_conversations import stored_conversations
from longctx_jax.data.tokenizer import Tokenizer
from longctx_jax.data.tokenizer_files import copy_tokenizer, load_tokenizer
from longctx_jax.directory_lock import directory_lock
from longctx_jax.workdir import first_difference

log = logging.getLogger(__name__)

# ours: the words of small synthetic tables are shown to the tokenizer once per
# this many characters of text, often enough for each to become one piece.
CHARS_PER_VOCABULARY = 4_000
# Encoded at a time. ours: texts and tokens of so many fit into memory at once,
# and no core waits long for the last of them.
CHARS_PER_BATCH = 4_000_000


class Corpus(NamedTuple):
  """What every stage trains and is evaluated on."""

  tokenizer: Tokenizer
  documents: DocumentStore
  heldout: DocumentStore
  conversations: DocumentStore
  chat: Chat


def prepare_corpus(
  config: CorpusConfig, directory: Path, *, seed: int
) -> Corpus:
  """Opens the corpus in `directory`, or makes it if it is not there.

  `config.prepared` is opened in its stead, if that is given. All is done in
  memory, one document after the other: `prepare_pipeline.prepare_at_scale`
  makes the same corpus of any number of documents.

  Raises:
    ConfigError: there is one, made with other settings; or another process is
      making it; or there is no text to make one of, or no conversation can be
      made of it.
  """
  if config.prepared:
    return _open_prepared(config)
  settings = corpus_settings(config, seed)
  with making(directory, '--workdir') as missing:
    if missing:
      partial = directory.with_name(directory.name + '.partial')
      shutil.rmtree(partial, ignore_errors=True)
      try:
        _write_corpus(config, partial, settings, seed)
        publish(partial, directory)
      finally:
        shutil.rmtree(partial, ignore_errors=True)
  return open_corpus(directory, settings)


@contextlib.contextmanager
def making(directory: Path, flag: str) -> Iterator[bool]:
  """Whether a corpus is missing; if so, no other process makes it meanwhile.

  Raises:
    ConfigError: another process is making it; `flag` says where.
  """
  if directory.exists():
    yield False
    return
  lock = directory.with_name(f'{directory.name}.lock')
  with directory_lock(directory, lock, flag):
    # Another one may have made it just before.
    yield not directory.exists()


def open_corpus(
  directory: Path, settings: dict | None = None, chat: Chat | None = None
) -> Corpus:
  """The corpus in `directory`, checked to belong together.

  Args:
    chat: of its tokenizer, if that is loaded; large ones take a second.

  Raises:
    ConfigError: it was made with settings other than `settings`.
    StoreError: there is none, a store was tokenised by another tokenizer, or is
      damaged.
  """
  if directory.exists() and not (directory / 'documents').exists():
    raise StoreError(
      f'{directory} holds no corpus: give the directory of one, or remove this'
      ' one to have a corpus made there'
    )
  stores = {
    name: DocumentStore(directory / name)
    for name in ('documents', 'heldout', 'conversations')
  }
  for store in stores.values():
    there = settings_there(store.settings)
    if settings is not None and there != settings:
      raise ConfigError(
        f'{directory} was prepared with other corpus settings'
        f' ({first_difference(there, settings)}): give another'
        ' directory, or remove it to prepare it again'
      )
  if chat is None:
    made_with = stores['documents'].settings['corpus']
    template = TEMPLATES[made_with['chat_template']]
    chat = Chat(load_tokenizer(directory, control=template.control), template)
  tokenizer = chat.tokenizer
  for name, store in stores.items():
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
      raise StoreError(
        f'{directory / name} was tokenised by {store.tokenizer_fingerprint},'
        f' but the tokenizer in {directory} is {tokenizer.fingerprint}:'
        f' remove {directory} to prepare it again'
      )
  corpus = Corpus(tokenizer, chat=chat, **stores)
  if heldout_accounts(corpus.documents.accounts) != corpus.heldout.accounts:
    raise StoreError(
      f'{directory}: its documents and its heldout count differently what'
      f' became of the same texts: remove {directory} to prepare it again'
    )
  return corpus


def _open_prepared(config) -> Corpus:
  """The corpus of `longctx prepare`, made with any seed."""
  directory = Path(config.prepared)
  if not directory.is_dir():
    raise ConfigError(
      f'corpus.prepared={config.prepared}: no such directory. Make it with'
      f' `longctx prepare --out={config.prepared}` and this --config'
    )
  corpus = open_corpus(directory)
  there = settings_there(corpus.documents.settings)['corpus']
  here = corpus_settings(config, 0)['corpus']
  if there != here:
    raise ConfigError(
      f'corpus.prepared={config.prepared} was made with other settings:'
      f' {first_difference(there, here, "corpus")}'
    )
  return corpus


def _write_corpus(config, directory, settings, seed):
  check_inputs(config)
  directory.mkdir(parents=True)
  # What is given is looked at before hours of reading.
  chat = given_chat(config, directory) if config.tokenizer_path else None
  training, heldout, keys, accounts = [], [], set(), {}
  for domain, source in config.sources.items():
    with naming_source(domain):
      found, counts = sample_documents(
        source, domain, cache_dir(), least_chars=config.filters.least_chars
      )
    accounts[domain] = counts
    log.info('corpus: %d documents of %s', len(found), domain)
    for document in found:
      key = text_key(document.text)
      if config.filters.deduplicate and key in keys:
        counts.move('double', len(document.text))
        continue
      keys.add(key)
      held = is_heldout(document.name, config.heldout_frac)
      (heldout if held else training).append(document)
  if doubles := sum(each.documents['double'] for each in accounts.values()):
    log.info('corpus: %d documents left out as doubles of others', doubles)
  check_both_there(len(training), len(heldout), accounts)
  chat = chat or trained_chat(config, training, directory)
  tokenizer = chat.tokenizer

  def write(name, documents, accounts):
    write_store(
      directory / name,
      documents,
      tokenizer_fingerprint=tokenizer.fingerprint,
      settings=settings,
      accounts=accounts,
      compression=config.compression,
    )

  log.info('corpus: tokenising %d documents', len(training) + len(heldout))
  # The few held-out ones first: the accounts of both stores tell of them.
  held = list(_tokenised(config, tokenizer, heldout, accounts, HELDOUT))
  write(
    'documents', _tokenised(config, tokenizer, training, accounts), accounts
  )
  write('heldout', held, heldout_accounts(accounts))
  made = {}
  conversations = stored_conversations(config, chat, training, seed, made)
  write('conversations', conversations, made)


def heldout_accounts(accounts: dict[str, Counts]) -> dict[str, Counts]:
  """Accounts of the held-out store, from those of the training store."""
  return {domain: each.of_heldout() for domain, each in accounts.items()}


def check_both_there(
  training: int,
  heldout: int,
  accounts: Mapping[str, Counts],
  problems: Mapping[tuple[str, str], str] = types.MappingProxyType({}),
) -> None:
  """Raises ConfigError if there are no documents to train or evaluate on.

  Args:
    accounts: what became of the documents of each source.
    problems: (source, kind) -> the first message, where it is known.
  """
  if training and heldout:
    return
  message = (
    f'empty corpus: {training} training and {heldout} held-out documents.'
    ' Both must be there: raise corpus.sources.*.max_chars or change'
    ' corpus.heldout_frac'
  )
  left_out = [
    (count, domain, kind)
    for domain, counts in accounts.items()
    for kind, count in counts.dropped().items()
  ]
  if left_out:
    count, domain, kind = max(left_out)
    first = problems.get((domain, kind), '')
    kind += ' (corpus.filters.min_chars)' if kind == 'too_short' else ''
    message += (
      f', or look at what was left out: {count} documents of {domain} as'
      f' {kind}{first and f", the first: {first}"}'
    )
  raise ConfigError(message)


def given_chat(config: CorpusConfig, directory: Path) -> Chat:
  """The tokenizer of `config.tokenizer_path`, copied into `directory`."""
  copy_tokenizer(
    config.tokenizer_path,
    directory,
    added_tokens=config.added_tokens,
    bos_token=config.bos_token,
    eos_token=config.eos_token,
  )
  template = TEMPLATES[config.chat_template]
  tokenizer = load_tokenizer(directory, control=template.control)
  if tokenizer.vocab_size > config.vocab_size:
    raise ConfigError(
      f'{config.tokenizer_path} has {tokenizer.vocab_size} tokens, more than'
      f' corpus.vocab_size={config.vocab_size}'
    )
  for field in ('bos', 'eos'):
    wanted = getattr(config, field) == 'document'
    if wanted and getattr(tokenizer, f'{field}_id') is None:
      raise ConfigError(
        f'corpus.{field}=document, but {config.tokenizer_path} names no such'
        f' token: set corpus.{field}_token, or corpus.{field}=none'
      )
  return Chat(tokenizer, template)


def trained_chat(
  config: CorpusConfig, documents: list[Document], directory: Path
) -> Chat:
  """A SentencePiece model of `documents`, written into `directory`."""
  log.info('corpus: training a tokenizer of %d pieces', config.vocab_size)
  texts = [document.text for document in documents]
  repeats = 1 + sum(map(len, texts)) // CHARS_PER_VOCABULARY
  texts += [synthetic_tables.vocabulary_text()] * repeats
  template = TEMPLATES[config.chat_template]
  path = directory / 'tokenizer.model'
  tokenizer = train_sentencepiece(
    texts, config.vocab_size, path, control=template.control
  )
  return Chat(tokenizer, template)


def _tokenised(
  config: CorpusConfig,
  tokenizer: Tokenizer,
  documents: list[Document],
  accounts: dict[str, Counts],
  kind: str = '',
) -> Iterator[StoredDocument]:
  """Those of a length that `config.filters` lets through; logs the others.

  In the accounts, the others are dropped, and these are of `kind`, if given.
  """
  dropped = Counter()
  for document, tokens, done in tokenise(config, tokenizer, documents):
    if tokens is None:
      dropped[done] += 1
    if ends_as := kind if tokens is not None else done:
      accounts[document.domain].move(ends_as, len(document.text))
    if tokens is not None:
      yield StoredDocument(document.name, document.domain, tokens, None)
  for done, count in dropped.items():
    log.info('corpus: %d documents left out as %s', count, done)
  seen, kept = len(documents), len(documents) - dropped.total()
  check_any_kept(config, kept, seen, heldout=kind == HELDOUT)


def tokenise(
  config: CorpusConfig, tokenizer: Tokenizer, documents: Iterable[Document]
) -> Iterator[tuple[Document, np.ndarray | None, str]]:
  """Tokens of each, between what `config.bos` and `config.eos` say.

  With what `fit_length` did to them: None is left out.
  """
  begin, end = (
    np.array([i] if where == 'document' else [], np.int32)
    for i, where in (
      (tokenizer.bos_id, config.bos),
      (tokenizer.eos_id, config.eos),
    )
  )
  for batch in _batches(documents):
    encoded = tokenizer.encode_batch([document.text for document in batch])
    for document, text in zip(batch, encoded, strict=True):
      tokens = np.concatenate([begin, text, end])
      yield document, *fit_length(tokens, config.filters)


def check_any_kept(
  config: CorpusConfig, kept: int, seen: int, *, heldout: bool
) -> None:
  """Raises ConfigError if the filters left no document of a store."""
  if kept:
    return
  store, advice = 'training', 'give more text'
  if heldout:
    store, advice = 'held-out', 'raise corpus.heldout_frac, give more text'
  raise ConfigError(
    f'corpus.filters: none of the {seen} {store} documents has a length of'
    f' {config.filters.min_tokens} to {config.filters.max_tokens or "any"}'
    f' tokens: {advice}, or change min_tokens, max_tokens or too_long'
  )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  """Documents in turn, a new batch when one has `CHARS_PER_BATCH`."""
  batch, chars = [], 0
  for document in documents:
    batch.append(document)
    chars += len(document.text)
    if chars >= CHARS_PER_BATCH:
      yield batch
      batch, chars = [], 0
  if batch:
    yield batch
