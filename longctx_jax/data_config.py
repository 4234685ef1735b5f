"""Typed, frozen configuration of rows, mixtures and batches; see `config`."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from longctx_jax.config_from_dict import ConfigError, check_at_least

# Planner -> the fields of `DocumentRows` that it reads beyond the common ones.
PLANNER_FIELDS = {
  'concat': (),
  'concat_drop': (),
  'whole': (),
  'best_fit': (),
  'buckets': ('bucket_len',),
  'interleave': (
    *('docs_per_row', 'num_chunks', 'split', 'order'),
    *('interleave_prob', 'exempt'),
  ),
  'untie': ('chunk_probs', 'min_chunk_len', 'interleave_prob', 'exempt'),
}
INTERLEAVING = ('interleave', 'untie')
# Fields of `DataConfig` that say how rows are read, and change none: a run may
# go on with others.
READING = ('num_workers', 'on_repeat')


@dataclasses.dataclass(frozen=True)
class DocumentRows:
  """Rows cut from stored documents by a planner, see `data/planners.py`."""

  kind: Literal['documents']
  weight: float
  # () takes the documents of every domain.
  domains: tuple[str, ...]
  planner: Literal[
    'concat',
    'concat_drop',
    'whole',
    'best_fit',
    'buckets',
    'interleave',
    'untie',
  ]
  # interleave (CIP): documents per row, and chunks per document.
  docs_per_row: int = 0
  num_chunks: int = 0
  split: Literal['equal', 'random'] = 'equal'
  order: Literal['round_robin', 'shuffle'] = 'round_robin'
  # untie (UtK): probabilities of 1, 2, 3, ... chunks, and their least length.
  chunk_probs: tuple[float, ...] = ()
  min_chunk_len: int = 0
  # interleave, untie: how many of the rows, and which domains in none of them.
  interleave_prob: float = 1.0
  exempt: tuple[str, ...] = ()
  # buckets: the length of all pieces.
  bucket_len: int = 0
  # Takes documents of min_len <= tokens < max_len alone; 0 is no limit. The
  # buckets of one domain, [64K, 512K) and [512K, ...), share no document.
  min_len: int = 0
  max_len: int = 0

  def __post_init__(self):
    check_at_least(self, 0, 'min_len', 'max_len')
    if self.max_len and self.max_len <= max(self.min_len, self.bucket_len):
      raise ConfigError(
        f'min_len={self.min_len}, max_len={self.max_len},'
        f' bucket_len={self.bucket_len}: no document has min_len <= tokens <'
        ' max_len and fills a bucket'
      )
    read = *PLANNER_FIELDS[self.planner], 'min_len', 'max_len'
    for field in dataclasses.fields(self):
      name, value = field.name, getattr(self, field.name)
      if field.default not in (dataclasses.MISSING, value) and name not in read:
        readers = [p for p, names in PLANNER_FIELDS.items() if name in names]
        raise ConfigError(
          f'{name}={value} would not be read: planner={self.planner}; remove it'
          f' or set planner={" or ".join(readers)}'
        )
    counted = ('docs_per_row', 'num_chunks', 'min_chunk_len', 'bucket_len')
    check_at_least(self, 1, *(name for name in counted if name in read))
    if not 0 <= self.interleave_prob <= 1:
      raise ConfigError(
        f'interleave_prob must lie in [0, 1], got {self.interleave_prob}'
      )
    if 'chunk_probs' in read and not (
      all(p >= 0 for p in self.chunk_probs)
      and abs(sum(self.chunk_probs) - 1) <= 1e-6
    ):
      raise ConfigError(
        'chunk_probs are the probabilities of 1, 2, 3, ... chunks: none'
        f' negative, their sum 1, got {self.chunk_probs}'
      )
    if self.domains and not set(self.exempt) <= set(self.domains):
      raise ConfigError(
        f'exempt={self.exempt} must be among domains={self.domains}'
      )


@dataclasses.dataclass(frozen=True)
class ConversationRows:
  """Rows of stored conversations; loss on the assistant's turns."""

  kind: Literal['conversations']
  weight: float
  # () takes every kind of conversation.
  conversations: tuple[str, ...] = ()
  # concat_drop cuts the last one of a row (ProLong, A.2); whole cuts none.
  planner: Literal['whole', 'concat_drop'] = 'whole'


@dataclasses.dataclass(frozen=True)
class TableRows:
  """Rows of synthetic lengthy tables (SynL), made when they are read."""

  kind: Literal['tables']
  weight: float
  tasks: dict[str, float]
  layouts: dict[str, float]
  num_columns: int
  # Length of one table with its questions, in tokens: log-uniform.
  min_len: int
  max_len: int
  # Questions per row of the table, and at most this many.
  question_frac: float
  max_questions: int

  def __post_init__(self):
    if not 32 <= self.min_len <= self.max_len:
      raise ConfigError(
        f'min_len={self.min_len}, max_len={self.max_len}: need 32 <= min_len <='
        ' max_len (a row and a question take about 32 tokens)'
      )
    if self.question_frac <= 0 or self.max_questions < 1:
      raise ConfigError(
        f'question_frac={self.question_frac},'
        f' max_questions={self.max_questions}: tables need a question,'
        ' question_frac > 0 and max_questions >= 1'
      )


@dataclasses.dataclass(frozen=True)
class RetrievalRows:
  """Rows of long texts that hide what is asked for, made when they are read.

  See `data/retrieval_conversations.py`.
  """

  kind: Literal['retrieval']
  weight: float
  tasks: dict[str, float]
  # Length of one text with its questions, in tokens: log-uniform.
  min_len: int
  max_len: int
  # Of one text, of those tasks that hide more than one thing; fewer where all
  # would be longer than what they are about.
  max_questions: int = 1
  # needle: whose training documents hide the needles; () every domain's.
  domains: tuple[str, ...] = ()

  def __post_init__(self):
    if not 1 <= self.min_len <= self.max_len:
      raise ConfigError(
        f'min_len={self.min_len}, max_len={self.max_len}: need 1 <= min_len <='
        ' max_len'
      )
    check_at_least(self, 1, 'max_questions')
    if self.max_questions > 1 and not self._has('needle', 'kv_retrieval'):
      raise ConfigError(
        f'max_questions={self.max_questions} would not be read: only the tasks'
        ' needle and kv_retrieval hide more than one thing'
      )
    if self.domains and not self.reads_documents:
      raise ConfigError(
        f'domains={self.domains} would not be read: only the task needle hides'
        ' something in documents'
      )

  @property
  def reads_documents(self) -> bool:
    """Whether any row is made of stored documents."""
    return self._has('needle')

  def _has(self, *tasks: str) -> bool:
    return any(self.tasks.get(task) for task in tasks)


# Rows that are made when they are read.
SyntheticSource = TableRows | RetrievalRows
SourceConfig = DocumentRows | ConversationRows | SyntheticSource


@dataclasses.dataclass(frozen=True)
class WeightsAt:
  """The weights of all sources from a step on; see `data/mixture.py`.

  Rows are given out 128 at a time: a source whose weight ends serves its share
  of those that the step lies in.
  """

  step: int
  weights: dict[str, float]


@dataclasses.dataclass(frozen=True)
class WindowAt:
  """The context window, in tokens, at a step; see `data/batch_fields.py`."""

  step: int
  window: int

  def __post_init__(self):
    check_at_least(self, 1, 'window')


@dataclasses.dataclass(frozen=True)
class PositionJumps:
  """Positions that skip ahead, up to `target_len`; see `data/batch_fields.py`.

  'pose' skips once a row, 'longrecipe' between `num_chunks` chunks of it.
  """

  kind: Literal['none', 'pose', 'longrecipe'] = 'none'
  target_len: int = 0
  num_chunks: int = 0

  def __post_init__(self):
    if self.kind != 'longrecipe' and self.num_chunks:
      raise ConfigError(
        f'num_chunks={self.num_chunks} is of kind=longrecipe: kind={self.kind}'
        ' has a number of its own, leave it 0'
      )
    if self.kind == 'longrecipe':
      check_at_least(self, 2, 'num_chunks')
    if self.kind == 'none' and self.target_len:
      raise ConfigError(
        f'target_len={self.target_len} needs kind=pose or kind=longrecipe'
      )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What a training batch is made of."""

  seq_len: int
  batch_size: int  # rows of the global batch, all micro-batches included
  document_mask: bool
  restart_positions: bool
  # 'token': every target token counts the same (ProLong, sec. 5.3);
  # 'sequence': every document does (LongAlign, arXiv:2401.18058, Eq. 2-4).
  loss_normalizer: Literal['token', 'sequence']
  # Its weights, of step 0, are shares of the tokens, padding left out.
  mixture: dict[str, SourceConfig]
  # Later weights: linear from entry to entry, constant after the last one.
  weight_schedule: tuple[WeightsAt, ...] = ()
  # A source that has fewer rows than its share is shuffled again for its next
  # epoch with a warning, or the run is refused.
  on_repeat: Literal['warn', 'refuse'] = 'warn'
  # Is a document's first token predicted by the last one of the document before
  # it? Never under a document mask. ProLong leaves it out (its data loader
  # labels the first token of each document -100).
  label_first_token: bool = True
  # SkyLadder's context window over the steps, linear from entry to entry and
  # constant before and after; () is the whole row. Rounded down to a multiple.
  window_schedule: tuple[WindowAt, ...] = ()
  window_multiple: int = 1
  position_jumps: PositionJumps = PositionJumps()
  # Processes that read rows; 0 reads in threads. Changes no batch.
  num_workers: int = 0

  def __post_init__(self):
    check_at_least(self, 1, 'seq_len', 'batch_size', 'window_multiple')
    check_at_least(self, 0, 'num_workers')
    _check_weights(
      {name: source.weight for name, source in self.mixture.items()},
      'mixture',
      'mixture.{}.weight',
    )
    _check_rising(self.weight_schedule, 1, 'weight_schedule')
    _check_rising(self.window_schedule, 0, 'window_schedule')
    for entry in self.weight_schedule:
      where = f'weight_schedule: step {entry.step}'
      if entry.weights.keys() != self.mixture.keys():
        raise ConfigError(
          f'{where} has weights of {", ".join(sorted(entry.weights))}, and the'
          f' mixture is of {", ".join(sorted(self.mixture))}: name each one'
        )
      _check_weights(entry.weights, where, f'{where}: weight of {{}}')
    self._check_batch_options()

  def _check_batch_options(self):
    for entry in self.window_schedule:
      if not self.window_multiple <= entry.window <= self.seq_len:
        raise ConfigError(
          f'window_schedule: step {entry.step} has window={entry.window}; it'
          f' must lie between window_multiple={self.window_multiple} and'
          f' seq_len={self.seq_len}'
        )
    if self.window_multiple > 1 and not self.window_schedule:
      raise ConfigError(
        f'window_multiple={self.window_multiple} needs a window_schedule'
      )
    jumps = self.position_jumps
    if jumps.kind != 'none' and jumps.target_len <= self.seq_len:
      raise ConfigError(
        f'position_jumps.target_len={jumps.target_len} must be above'
        f' seq_len={self.seq_len}: there is nothing to jump over'
      )
    cutting = {
      'document_mask=True': self.document_mask,
      'restart_positions=True': self.restart_positions,
      'label_first_token=False': not self.label_first_token,
      'window_schedule': self.window_schedule,
    }
    for name, source in self.mixture.items():
      if not isinstance(source, DocumentRows):
        continue
      if source.bucket_len and self.seq_len % source.bucket_len:
        raise ConfigError(
          f'seq_len={self.seq_len} is not a multiple of'
          f' mixture.{name}.bucket_len={source.bucket_len}'
        )
      if source.planner not in INTERLEAVING:
        continue
      if self.loss_normalizer == 'sequence':
        raise ConfigError(
          f'mixture.{name}: chunk-interleaved rows (planner={source.planner})'
          ' cannot be trained under data.loss_normalizer=sequence: each chunk'
          ' would count as much as a document. Set it to token'
        )
      for setting, is_on in cutting.items():
        if is_on:
          raise ConfigError(
            f'mixture.{name}: chunk-interleaved rows (planner={source.planner})'
            f' cannot be trained under data.{setting}: it would cut the very'
            ' links that interleaving makes. Set one of the two off'
          )


def _check_weights(
  weights: Mapping[str, float], where: str, field: str
) -> None:
  total = sum(weights.values())
  if not abs(total - 1) <= 1e-6:  # so put, because it refuses NaN too
    listed = ', '.join(f'{name}={w}' for name, w in weights.items())
    raise ConfigError(
      f'{where}: the weights must sum to 1, got {total:g} ({listed})'
    )
  for name, weight in weights.items():
    if weight < 0:
      raise ConfigError(
        f'{field.format(name)} must not be negative, got {weight}'
      )


def _check_rising(
  schedule: Sequence[WeightsAt | WindowAt], least: int, where: str
) -> None:
  steps = [entry.step for entry in schedule]
  if any(a >= b for a, b in itertools.pairwise([least - 1, *steps])):
    raise ConfigError(
      f'{where}: steps must rise from {least} or more, got'
      f' {", ".join(map(str, steps))}'
    )
