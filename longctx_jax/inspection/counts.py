"""What some steps take of each source, and the rule behind each number."""

import dataclasses
from typing import NamedTuple

from longctx_jax.config import StageConfig
from longctx_jax.data.pipeline import BatchSource
from longctx_jax.data_config import (
  ConversationRows,
  DataConfig,
  DocumentRows,
  RetrievalRows,
  SourceConfig,
)
from longctx_jax.settings_table import flatten

# Fields of a source that its description names, or that do not choose rows.
_NAMED = ('kind', 'weight', 'domains', 'conversations')
# What the row of all sources is the sum of.
_ADDED_UP = (
  *('share_wanted', 'rows', 'tokens', 'padding', 'targets', 'weight'),
  'slices',
)


class SourceCounts(NamedTuple):
  """What the counted steps take of one source, or of all."""

  name: str
  how: str  # which rows these are, in words
  share_wanted: float  # of tokens
  rows: int = 0
  tokens: int = 0
  padding: int = 0
  targets: int = 0
  weight: float = 0.0
  slices: int = 0
  documents: int = 0
  # How often the source was read before the steps and after them; None: it
  # serves no row in these steps, or has no end.
  epochs: tuple[float, float] | None = None


class Counts(NamedTuple):
  """Counts of each source, in the mixture's order, and of all together."""

  first_step: int
  num_steps: int
  sources: list[SourceCounts]
  total: SourceCounts
  rules: list[tuple[str, str]]  # (column, how its numbers are made)


def count_sources(
  stage: StageConfig, source: BatchSource, step: int, num_steps: int
) -> Counts:
  """Counts `num_steps` steps from `step` on, or as many as the run has left."""
  data = stage.data
  num_steps = min(num_steps, stage.train.steps - step)
  first, stop = (s * data.batch_size for s in (step, step + num_steps))
  wanted = source.shares_wanted(first, stop)
  counts = {
    name: SourceCounts(name, describe_source(config, data), wanted[name])
    for name, config in data.mixture.items()
  }
  documents = {name: set() for name in counts}
  for i in range(first, stop):
    origin, batch = source.origin(i), source[i]
    old = counts[origin.source]
    tokens = int((batch.segment_ids > 0).sum())
    documents[old.name] |= {(s.domain, s.name) for s in origin.slices}
    counts[old.name] = old._replace(
      rows=old.rows + 1,
      tokens=old.tokens + tokens,
      padding=old.padding + data.seq_len - tokens,
      targets=old.targets + int((batch.loss_weights > 0).sum()),
      weight=old.weight + float(batch.loss_weights.sum(dtype='float64')),
      slices=old.slices + len(origin.slices),
      epochs=_epochs(old.epochs, origin),
    )
  sources = [
    count._replace(documents=len(documents[name]))
    for name, count in counts.items()
  ]
  sums = {
    field: sum(getattr(count, field) for count in sources)
    for field in _ADDED_UP
  }
  everything = set().union(*documents.values())
  total = SourceCounts('all', '', documents=len(everything), **sums)
  rules = _rules(stage, first, stop)
  return Counts(step, num_steps, sources, total, rules)


def _epochs(before, origin):
  """Epochs up to and with this row, from those before the first one counted."""
  if not origin.epoch_len:
    return None
  start = before[0] if before else origin.number / origin.epoch_len
  return start, (origin.number + 1) / origin.epoch_len


def shares_got(count: SourceCounts, total: SourceCounts) -> list[float | None]:
  """Shares of all rows, tokens and targets; None of nothing."""
  return [
    getattr(count, field) / getattr(total, field)
    if getattr(total, field)
    else None
    for field in ('rows', 'tokens', 'targets')
  ]


def describe_source(config: SourceConfig, data: DataConfig) -> str:
  """Which rows a source makes, with every setting that decides."""
  if isinstance(config, DocumentRows):
    of = _listed('domain', config.domains)
    text = f'training documents of {of}, put into rows by a planner'
  elif isinstance(config, ConversationRows):
    of = _listed('kind', config.conversations)
    text = f'stored conversations of {of}, put into rows by a planner'
  elif isinstance(config, RetrievalRows):
    text = 'texts that hide what is asked for, made when they are read'
    if config.reads_documents:
      of = _listed('domain', config.domains)
      text += f', needles in training documents of {of}'
  else:
    text = 'tables and questions, made when they are read'
  settings = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.name not in _NAMED
    and (
      field.name == 'planner' or getattr(config, field.name) != field.default
    )
  }
  listed = ', '.join(f'{path}={v}' for path, v in flatten(settings).items())
  return f'{text} ({listed}); rows of at most {data.seq_len:,} tokens'


def _listed(what, names):
  return f'{what} {" or ".join(names)}' if names else f'every {what}'


def _rules(stage, first, stop):
  """(column, rule): the exact filter behind each number of the table."""
  data = stage.data
  targets = 'tokens with loss_weights > 0 at the token before them'
  # Where either is set, no document predicts the next one.
  for setting, is_set in (
    ('document_mask=True', data.document_mask),
    ('label_first_token=False', not data.label_first_token),
  ):
    if is_set:
      targets += f'; none is the first token of a slice ({setting})'
  masked = [
    name
    for name, config in data.mixture.items()
    if not isinstance(config, DocumentRows)
  ]
  if masked:
    targets += (
      f'; of {", ".join(masked)} only what the assistant says and its end'
    )
  each = (
    'each target counts 1'
    if data.loss_normalizer == 'token'
    else 'all targets of a slice count 1 together'
  )
  wanted = 'data.mixture.SOURCE.weight, a share of tokens'
  if data.weight_schedule:
    wanted += ', as data.weight_schedule changes it: the mean over these rows'
  return [
    (
      'rows',
      f'rows i of the run with {first:,} <= i < {stop:,} that the mixture'
      f' gives to the source (seed={stage.seed})',
    ),
    ('tokens', 'tokens of these rows with segment_ids > 0'),
    ('padding', 'tokens with segment_ids = 0'),
    ('targets', targets),
    (
      'weight',
      f'sum of loss_weights, by which the loss is divided: {each}'
      f' (loss_normalizer={data.loss_normalizer})',
    ),
    ('slices', 'stretches of documents of which these rows are put together'),
    ('documents', 'different documents, by domain and name, of these slices'),
    (
      'epochs',
      'rows that the source has served in the run, divided by the rows of its'
      ' plan: before these steps, and after them',
    ),
    ('tokens wanted', wanted),
    (
      'share of rows, tokens, targets',
      "the source's number of the sum over all sources",
    ),
  ]
