"""Typed, frozen configuration of the data side; see `config`."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from longctx_jax.config_from_dict import ConfigError, check_at_least

# Kinds of source whose documents are records with named fields.
_RECORDS = ('jsonl', 'parquet', 'hf_dataset', 'tfds', 'array_record')
# Field of a source -> the kinds that have a use for it.
_KINDS_WITH = {
  'path': ('text_files', 'repositories', *_RECORDS),
  'suffixes': ('text_files', 'repositories'),
  'text_field': _RECORDS,
  'name_field': _RECORDS,
  'split': ('hf_dataset', 'tfds'),
}


@dataclasses.dataclass(frozen=True)
class TextSource:
  """One domain of real documents. Kinds: see `data/readers.py`."""

  kind: Literal[
    *('stdlib', 'packages', 'books', 'docs', 'text_files', 'repositories'),
    *_RECORDS,
  ]
  max_chars: int
  path: str = ''  # a file, a directory or a pattern such as texts/**/*.jsonl
  # Which files count; () takes what is usual for the kind.
  suffixes: tuple[str, ...] = ()
  # Field of a record that holds its text; '' if an ArrayRecord is the text.
  text_field: str = 'text'
  # Field that names a record; '' names it by its file and place.
  name_field: str = ''
  split: str = ''
  # What to do with bytes that are not UTF-8: a problem, or U+FFFD for each.
  errors: Literal['problem', 'replace'] = 'problem'
  # What to do with documents that cannot be read: count them, or stop.
  on_problem: Literal['skip', 'stop'] = 'skip'
  # Longer documents are problems: it bounds the memory that one takes. ours:
  # twice the longest installed package we met.
  max_document_chars: int = 50_000_000

  def __post_init__(self):
    check_at_least(self, 0, 'max_chars')
    check_at_least(self, 1, 'max_document_chars')
    for field, kinds in _KINDS_WITH.items():
      default = type(self).__dataclass_fields__[field].default
      if self.kind not in kinds and getattr(self, field) != default:
        raise ConfigError(
          f'{field}={getattr(self, field)!r}: a source of kind {self.kind} has'
          f' no use for it; {field} belongs to {", ".join(kinds)}'
        )
    if not self.text_field and self.kind != 'array_record':
      raise ConfigError(
        "text_field='': name the field that holds the text (only a record of"
        ' kind array_record can be the text itself)'
      )
    if not self.text_field and self.name_field:
      raise ConfigError(
        f"name_field={self.name_field!r}: with text_field='' a record is its"
        ' text and has no other field'
      )
    for suffix in self.suffixes:
      if not suffix.startswith('.'):
        raise ConfigError(f'suffixes: {suffix!r} must begin with a dot')


@dataclasses.dataclass(frozen=True)
class ConversationFiles:
  """Conversations from JSON files; see `data/conversation_files.py`."""

  path: str  # a file, or a directory of *.jsonl and *.json
  # 'auto' tells it from the keys of each file's first record.
  shape: Literal['auto', 'messages', 'ultrachat', 'alpaca', 'sharegpt'] = 'auto'
  # What to do with records that are no conversation: count them, or stop.
  on_problem: Literal['skip', 'stop'] = 'skip'
  # With one longer than corpus.max_conversation_len: leave it out; keep the
  # turns that fit, from the first on; or stop.
  on_long: Literal['drop', 'truncate', 'stop'] = 'drop'


@dataclasses.dataclass(frozen=True)
class DocumentFilters:
  """Which documents are stored, and how much of each."""

  # Of documents with the same text, in all sources, only the first is kept.
  deduplicate: bool = False
  # Lengths of a stored document with its begin and end tokens; 0: no limit.
  min_tokens: int = 0
  max_tokens: int = 0
  too_long: Literal['cut', 'drop'] = 'cut'

  def __post_init__(self):
    check_at_least(self, 0, 'min_tokens', 'max_tokens')
    if 0 < self.max_tokens < self.min_tokens:
      raise ConfigError(
        f'min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}:'
        ' no document has such a length'
      )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """Documents, their tokenizer, and the instruction data made from them."""

  sources: dict[str, TextSource]
  vocab_size: int
  heldout_frac: float
  # How many conversations of each kind to make: see `data/instructions.py`.
  conversations: dict[str, int]
  # Longest conversation kept, in tokens.
  max_conversation_len: int
  # '' trains a SentencePiece model of `vocab_size` on the corpus. Else such a
  # model, a tokenizer.json, or a folder that holds either.
  tokenizer_path: str = ''
  # Control tokens that a given tokenizer gets behind its own, in this order.
  added_tokens: tuple[str, ...] = ()
  # Begin and end of a document; '' is what the given tokenizer calls so.
  bos_token: str = ''
  eos_token: str = ''
  # What stored documents begin and end with.
  bos: Literal['document', 'none'] = 'document'
  eos: Literal['document', 'none'] = 'document'
  # What stands around the turns of conversations: `data/chat_templates.py`.
  chat_template: Literal['plain', 'chatml', 'llama3', 'skywork'] = 'plain'
  # Name -> conversations to add to those that are made from documents.
  conversation_files: dict[str, ConversationFiles] = dataclasses.field(
    default_factory=dict
  )
  filters: DocumentFilters = DocumentFilters()

  def __post_init__(self):
    if not self.tokenizer_path:
      for field in ('added_tokens', 'bos_token', 'eos_token'):
        if getattr(self, field):
          raise ConfigError(
            f'{field}={getattr(self, field)} is for a tokenizer that is given:'
            ' set tokenizer_path; one that is trained has all it needs'
          )
    twice = sorted(set(self.conversations) & set(self.conversation_files))
    if twice:
      raise ConfigError(
        f'conversation_files.{twice[0]}: conversations has a kind of this name:'
        ' choose another'
      )
    if not 0 < self.heldout_frac < 1:
      raise ConfigError(
        f'heldout_frac must lie in (0, 1), got {self.heldout_frac}'
      )


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
class WeightsAt:
  """The weights of all sources from a step on; see `data/mixture.py`."""

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
  # Its weights are those of step 0.
  mixture: dict[str, DocumentRows | ConversationRows | TableRows]
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
