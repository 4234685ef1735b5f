"""What the rows of a step hold, taken from the batches that training reads."""

import itertools
from typing import NamedTuple

import numpy as np

from longctx_jax.batch import Batch, check_segment_ids
from longctx_jax.config import StageConfig
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.corpus_settings import settings_there
from longctx_jax.data.pipeline import BatchSource, RowOrigin
from longctx_jax.data.prepare import Corpus
from longctx_jax.data.row_sources import Origin
from longctx_jax.inspection.corpus_rules import corpus_rules
from longctx_jax.inspection.counts import Counts, count_sources


class Stretch(NamedTuple):
  """Tokens of one document and one segment, whose positions count on."""

  start: int  # in the row
  stop: int  # exclusive
  origin: Origin  # what of its document these tokens are
  document: int  # among the row's documents, from 0 in order of appearance
  segment: int
  first_position: int
  num_targets: int  # of these tokens, as targets of those before them
  weight: float  # of these targets together

  @property
  def last_position(self) -> int:
    """RoPE position of the last token."""
    return self.first_position + self.stop - self.start - 1


class RowView(NamedTuple):
  """A row of the run, taken apart."""

  number: int  # in the run
  origin: RowOrigin
  batch: Batch  # fields [T]
  target_weights: np.ndarray  # float32 [T], of each token as a target
  stretches: list[Stretch]

  @property
  def num_tokens(self) -> int:
    """Tokens that are no padding."""
    return int((self.batch.segment_ids > 0).sum())

  @property
  def num_targets(self) -> int:
    """Tokens that are trained on."""
    return int((self.batch.loss_weights > 0).sum())

  @property
  def num_segments(self) -> int:
    """Groups of tokens that may attend to each other."""
    return int(self.batch.segment_ids.max(initial=0))

  @property
  def num_documents(self) -> int:
    """Different documents that the row has slices of."""
    return len({stretch.document for stretch in self.stretches})


class Inspection(NamedTuple):
  """A step's rows, and what it and the steps after it take."""

  stage: StageConfig
  fingerprint: str  # of the data, as checkpoints and errors name it
  step: int
  rows: list[RowView]
  counts: Counts
  corpus: list[tuple[str, str]]  # what its documents are, and the rule


def inspect_step(
  stage: StageConfig,
  corpus: Corpus,
  *,
  step: int = 0,
  num_rows: int = 4,
  num_steps: int = 10,
) -> Inspection:
  """The first rows of a step, and counts of `num_steps` steps from it on.

  Raises:
    ConfigError: the run has no such step.
  """
  check_step(stage, step)
  source = BatchSource(
    stage.data, corpus, seed=stage.seed, num_steps=stage.train.steps
  )
  first = step * stage.data.batch_size
  shown = range(first, first + min(num_rows, stage.data.batch_size))
  return Inspection(
    stage,
    source.fingerprint,
    step,
    [view_row(i, source.origin(i), source[i]) for i in shown],
    count_sources(stage, source, step, num_steps),
    corpus_rules(
      settings_there(corpus.documents.settings)['corpus'],
      corpus.documents.accounts,
    ),
  )


def check_step(stage: StageConfig, step: int) -> None:
  """Raises ConfigError unless the stage has such a step."""
  if not 0 <= step < stage.train.steps:
    raise ConfigError(
      f'--step={step}: stage {stage.name} has steps 0 to'
      f' {stage.train.steps - 1}'
    )


def view_row(number: int, origin: RowOrigin, batch: Batch) -> RowView:
  """Takes a row apart.

      documents        a a a a a b b b .
      segment_ids      1 1 1 1 1 2 2 2 0
      positions        0 1 2 7 8 0 1 2 0
      target_weights   0 1 1 1 1 0 1 1 0
      stretches        ----- --- -----      the positions of `a` jump

  Raises:
    ValueError: segment ids do not count from 1 in steps of 1.
  """
  segment_ids = np.asarray(batch.segment_ids)
  check_segment_ids(segment_ids[None])
  # Position t predicts token t + 1: the first token is nobody's target.
  weights = np.append(np.float32(0), batch.loss_weights[:-1])
  return RowView(
    number, origin, batch, weights, _stretches(origin.slices, batch, weights)
  )


def _stretches(slices, batch, weights):
  used = int((batch.segment_ids > 0).sum())
  starts = np.cumsum([0, *(s.stop - s.start for s in slices)])
  segments = batch.segment_ids[:used]
  positions = batch.positions[:used]
  breaks = (np.diff(segments) != 0) | (np.diff(positions) != 1)
  cuts = np.unique(np.append(np.flatnonzero(breaks) + 1, starts)).tolist()
  documents, found = {}, []
  for start, stop in itertools.pairwise(cuts):
    k = int(np.searchsorted(starts, start, side='right')) - 1
    name, domain, from_token, _ = slices[k]
    from_token += start - int(starts[k])
    part = weights[start:stop]
    found.append(
      Stretch(
        start,
        stop,
        Origin(name, domain, from_token, from_token + stop - start),
        documents.setdefault((domain, name), len(documents)),
        int(segments[start]),
        int(positions[start]),
        int((part > 0).sum()),
        float(part.sum(dtype=np.float64)),
      )
    )
  return found
