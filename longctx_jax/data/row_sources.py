"""What a source of rows is, and rows of a plan over a store."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.planners import plan_rows
from longctx_jax.data.row_plan import RowPlan
from longctx_jax.data.store import DocumentStore
from longctx_jax.data_config import ConversationRows, DocumentRows


class Row(NamedTuple):
  """A row before padding: its tokens, and where its slices end."""

  tokens: np.ndarray  # int32 [n], n <= T
  loss_mask: np.ndarray  # bool [n], may the token be a target
  slice_lens: np.ndarray  # int64, sums to n


class Origin(NamedTuple):
  """The stretch of a document that a slice of a row is."""

  name: str  # of the document
  domain: str  # or the kind of conversation
  start: int  # tokens
  stop: int  # tokens, exclusive


class RowSource(Protocol):
  """Endless rows, each a pure function of its number."""

  fingerprint: str
  fill: float  # tokens of its rows / places for them, above 0
  epoch_len: int | None  # rows of an epoch; None: no row comes twice
  num_threads: int  # that read it fastest, on cores that are free

  def rows(self, numbers: Sequence[int]) -> list[Row]:
    """These rows; one past the end begins the next epoch."""
    ...

  def origins(self, i: int) -> list[Origin]:
    """Where each slice of row i comes from, for people to read."""
    ...


class StoredRows:
  """Rows of a plan over stored documents, in a new order every epoch."""

  def __init__(
    self,
    store: DocumentStore,
    plan: RowPlan,
    documents: np.ndarray,
    seed: tuple[int, ...],
  ):
    """`documents` maps the plan's document numbers to the store's."""
    self._store, self._plan, self._documents = store, plan, documents
    self._seed = seed
    self._order = functools.lru_cache(maxsize=2)(self._epoch_order)
    self.epoch_len = len(plan)
    self.fill = plan.num_tokens / (len(plan) * plan.row_len)
    # ours: a few hide the decompression. Where there is none, two read a fifth
    # slower than one on two cores: they fight over the interpreter.
    self.num_threads = 2 if store.is_compressed else 1
    self.fingerprint = f'{store.fingerprint}-{plan.fingerprint()}'

  def __reduce__(self):
    # A reading process makes its own cache of epochs: this one can't travel.
    return StoredRows, (self._store, self._plan, self._documents, self._seed)

  @classmethod
  def of_documents(
    cls,
    store: DocumentStore,
    source: DocumentRows,
    row_len: int,
    seed: tuple[int, ...],
  ) -> 'StoredRows':
    """Rows of the documents of some domains, by the planner that is named."""
    rng = np.random.default_rng((*seed, 0))
    documents, lengths = select_documents(
      store, source.domains, source.min_len, source.max_len
    )
    exempt = None
    if source.exempt:
      exempt = np.isin(documents, select_documents(store, source.exempt)[0])
    plan = plan_rows(source, lengths, row_len, rng, exempt)
    return cls(store, plan, documents, seed)

  @classmethod
  def of_conversations(
    cls,
    store: DocumentStore,
    source: ConversationRows,
    row_len: int,
    seed: tuple[int, ...],
  ) -> 'StoredRows':
    """Rows of the conversations of some kinds, by the planner that is named."""
    if not len(store):
      raise ConfigError(
        'the corpus has no conversations: prepare one with'
        ' corpus.conversations or corpus.conversation_files, or take this'
        ' source out of data.mixture'
      )
    rng = np.random.default_rng((*seed, 0))
    documents, lengths = select_documents(store, source.conversations)
    plan = plan_rows(source, lengths, row_len, rng)
    return cls(store, plan, documents, seed)

  def rows(self, numbers: Sequence[int]) -> list[Row]:
    """Rows of the endless sequence of epochs, read together."""
    slices = [self._slices(i) for i in numbers]
    fields = map(np.concatenate, zip(*slices, strict=True))
    tokens, mask = self._store.read_many(*fields)
    ends = np.cumsum([part.lens.sum() for part in slices])[:-1]
    return [
      Row(row_tokens, row_mask, part.lens)
      for row_tokens, row_mask, part in zip(
        np.split(tokens, ends), np.split(mask, ends), slices, strict=True
      )
    ]

  def row(self, i: int) -> Row:
    """Row i alone."""
    return self.rows([i])[0]

  def origins(self, i: int) -> list[Origin]:
    """Names of row i's documents, and which of their tokens it has."""
    store = self._store
    return [
      Origin(
        store.name(document),
        store.domain_names[int(store.domain_ids[document])],
        start,
        stop,
      )
      for document, start, stop in zip(
        *(field.tolist() for field in self._slices(i)), strict=True
      )
    ]

  def _slices(self, i):
    """Slices of row i, of documents as the store numbers them."""
    epoch, k = divmod(i, len(self._plan))
    slices = self._plan.slices(int(self._order(epoch)[k]))
    return slices._replace(documents=self._documents[slices.documents])

  def _epoch_order(self, epoch):
    rng = np.random.default_rng((*self._seed, 1, epoch))
    return rng.permutation(len(self._plan))


def select_documents(
  store: DocumentStore,
  domains: Sequence[str],
  min_len: int = 0,
  max_len: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers and lengths of the documents of `domains`; () takes all.

  Of these, documents of min_len <= tokens < max_len, where 0 is no limit.

  Raises:
    ConfigError: a domain that is not there, or no document of such a length.
  """
  missing = set(domains) - set(store.domain_names)
  if missing:
    raise ConfigError(
      f'no documents of {", ".join(sorted(missing))} in the store, which has'
      f' {", ".join(store.domain_names)}'
    )
  wanted = [store.domain_names.index(name) for name in domains]
  documents = (
    np.flatnonzero(np.isin(store.domain_ids, wanted))
    if domains
    else np.arange(len(store))
  )
  lengths = store.lengths[documents]
  fitting = lengths >= min_len
  if max_len:
    fitting &= lengths < max_len
  if not fitting.any():
    raise ConfigError(
      f'none of the {len(lengths)} documents of'
      f' {", ".join(domains) or "all domains"} has {min_len} <= tokens'
      f'{f" < {max_len}" if max_len else ""}: they have {lengths.min()} to'
      f' {lengths.max()}. Change min_len or max_len'
    )
  documents = documents[fitting]
  return documents, store.lengths[documents]
