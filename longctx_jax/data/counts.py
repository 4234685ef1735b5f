"""What became of every document: as many are seen as are kept or dropped."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

# Totals, and not kinds of drop.
_SEEN, _KEPT = 'seen', 'kept'
# Kept in the other one of two stores: trained on, or held out from training.
TRAINING, HELDOUT = 'training', 'heldout'


@dataclasses.dataclass
class Counts:
  """Documents and characters that were seen, kept, and dropped by kind.

                documents   characters
      seen          1,000    5,200,000
      kept            950    4,890,000
      bad_json          3            0   nobody knows how many it held
      too_short        47       10,000
      cut               0      300,000   from documents that were kept

  Each process counts its own, and the sum of all is the account of the whole.
  """

  documents: Counter[str] = dataclasses.field(default_factory=Counter)
  chars: Counter[str] = dataclasses.field(default_factory=Counter)

  def see(self, chars: int = 0) -> None:
    """A document came in."""
    self._count(_SEEN, 1, chars)

  def keep(self, chars: int) -> None:
    """A document that was seen goes on, with so many characters."""
    self._count(_KEPT, 1, chars)

  def drop(self, kind: str, chars: int = 0) -> None:
    """A document that was seen goes no further."""
    self._count(kind, 1, chars)

  def move(self, kind: str, chars: int) -> None:
    """A document that was kept is of that kind after all."""
    self._count(_KEPT, -1, -chars)
    self._count(kind, 1, chars)

  def trim(self, kind: str, chars: int) -> None:
    """A document goes on without some of its characters."""
    if chars:
      self._count(kind, 0, chars)

  def dropped(self) -> dict[str, int]:
    """Documents by kind of drop, the most frequent first."""
    return {
      kind: count
      for kind, count in self.documents.most_common()
      if kind not in (_SEEN, _KEPT, TRAINING, HELDOUT) and count
    }

  def check(self) -> None:
    """Raises ValueError if a document or a character is unaccounted for."""
    for unit in ('documents', 'chars'):
      counter = getattr(self, unit)
      seen = counter[_SEEN]
      others = counter.total() - seen
      if seen != others:
        raise ValueError(
          f'the counts do not add up: {seen} {unit} were seen, and {others}'
          f' kept or dropped ({self.as_dict()[unit]})'
        )

  def as_dict(self) -> dict[str, dict[str, int]]:
    """For JSON, without zeros and in the order of kinds."""
    return {
      unit: {k: n for k, n in sorted(getattr(self, unit).items()) if n}
      for unit in ('documents', 'chars')
    }

  @classmethod
  def from_dict(cls, counts: Mapping[str, Mapping[str, int]]) -> 'Counts':
    """What `as_dict` made a dict of."""
    return cls(Counter(counts['documents']), Counter(counts['chars']))

  def renamed(self, names: Mapping[str, str]) -> 'Counts':
    """The same account with other names; kinds of one name are added up."""
    both = Counts()
    for unit in ('documents', 'chars'):
      for kind, count in getattr(self, unit).items():
        getattr(both, unit)[names.get(kind, kind)] += count
    return both

  def of_heldout(self) -> 'Counts':
    """The account of the held-out store, from that of the training store.

           training store    held-out store
    seen               10                10
    kept                7                 1
    heldout             1
    training                              7
    empty               2                 2
    """
    return self.renamed({_KEPT: TRAINING, HELDOUT: _KEPT})

  def of_both(self) -> 'Counts':
    """The account of both stores, from that of the training store."""
    return self.renamed({HELDOUT: _KEPT})

  def __add__(self, other: 'Counts') -> 'Counts':
    both = Counts(Counter(self.documents), Counter(self.chars))
    both.documents.update(other.documents)
    both.chars.update(other.chars)
    return both

  def _count(self, key, documents, chars):
    self.documents[key] += documents
    self.chars[key] += chars


def check_accounts(
  accounts: Mapping[str, Counts], stored: Mapping[str, int]
) -> None:
  """Raises ValueError if a store holds other documents than its accounts say.

  Args:
    accounts: what became of the documents of each domain.
    stored: documents of each domain that are in the store.
  """
  for domain in sorted({*accounts, *stored}):
    account = accounts.get(domain, Counts())
    kept, there = account.documents[_KEPT], stored.get(domain, 0)
    try:
      account.check()
      if kept != there:
        raise ValueError(
          f'the counts do not add up: {kept} documents were kept, and {there}'
          ' are stored'
        )
    except ValueError as error:
      raise ValueError(f'of {domain}, {error}') from None
