"""Loss by position, and by how much comes before the same tokens.

By position: of each document the first `length` tokens in one pass; the mean
loss of the tokens between 64 and 128, between 128 and 256, and so on. Later
tokens of a document may be harder or easier, so this mixes two things.

By context: the last `targets` tokens of the same stretch, given n tokens before
them, for n = targets, 2 targets, 4 targets, ... Only the context differs, so
this is what the context is worth.

Both are means of documents, with an interval that is drawn over documents: 95%
of means of as many documents drawn with replacement.

perplexity.jsonl has the means of each text that was read, as soon as they are
known; a rerun reads what is missing, and ends with the same numbers to the bit:

    {"name": "1024-0", ... "losses": {"all": 2.25, "0-64": 3.5, ...}}
    {"name": "1024-128-256-0", ... "losses": {"targets": 2.125}}
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.evals.predict import Predictor
from longctx_jax.evals.validation import position_buckets
from longctx_jax.progress import Progress
from longctx_jax.suites.record_file import add_records, open_records

_logger = logging.getLogger(__name__)

_RESAMPLES = 1000  # ours: the interval's own error is a thirtieth of its width


class Mean(NamedTuple):
  """Mean loss in nats a token, and where 95% of resampled means lie."""

  loss: float
  low: float
  high: float


class _Reading(NamedTuple):
  """All texts read with as much context, and which losses are wanted."""

  fields: dict[str, int]  # what tells it from all other readings
  rows: list[np.ndarray]
  parts: dict[str, slice]  # of a row's losses

  def names(self) -> list[str]:
    """Those of its records, one for each text."""
    values = '-'.join(map(str, self.fields.values()))
    return [f'{values}-{i}' for i in range(len(self.rows))]


def perplexity(
  predictor: Callable[[], Predictor],
  documents: Sequence[np.ndarray],
  directory: Path,
  *,
  length: int,
  num_targets: int,
  begin: np.ndarray,
  seed: int,
  asked_as: dict[str, Any],
) -> dict[str, Any]:
  """Losses of documents of at least `length` tokens, ready for JSON.

  Args:
    predictor: gives the model; is not called if all losses are there.
    documents: ids of each; shorter ones are left out.
    directory: receives perplexity.jsonl; what it has is not read again.
    length: tokens of each that are read.
    num_targets: tokens at its end whose context is varied.
    begin: ids that every text begins with; they count as no position.
    seed: of the resampling.
    asked_as: settings that losses of one file have to share.

  Raises:
    ConfigError: no document is long enough, or no token for targets; the file
      there is of other settings or other texts, or not ours.
  """
  contexts = context_lengths(length, num_targets)
  texts = [d[:length] for d in documents if len(d) >= length]
  if not texts:
    longest = max(map(len, documents), default=0)
    raise ConfigError(
      f'no document has the {length} tokens that the suite perplexity needs;'
      f' the longest has {longest}: give longer ones by --text, or a smaller'
      ' --lengths'
    )
  whole = _whole(texts, begin)
  cut = {n: _cut(texts, begin, num_targets, n) for n in contexts}
  path = directory / 'perplexity.jsonl'
  records = _measure(predictor, [whole, *cut.values()], path, asked_as)
  rng = np.random.default_rng(seed)

  def mean(reading, part):
    means = [records[name]['losses'][part] for name in reading.names()]
    # float32, as losses are: those of a file and those just measured are one.
    return _mean(np.array(means, np.float32), rng)._asdict()

  by_position = {p: mean(whole, p) for p in whole.parts if p != 'all'}
  by_context = {str(n): mean(each, 'targets') for n, each in cut.items()}
  return {
    'num_documents': len(texts),
    'length': length,
    'num_targets': num_targets,
    'loss': mean(whole, 'all'),
    'by_position': by_position,
    'by_context': by_context,
  }


def context_lengths(length: int, num_targets: int) -> list[int]:
  """Tokens before the targets: doubled, up to all that there are.

  Raises:
    ConfigError: there are no targets, or nothing is before them.
  """
  if not 1 <= num_targets < length:
    raise ConfigError(
      f'--num_targets={num_targets} must be at least 1, and below the length of'
      f' {length}'
    )
  most = length - num_targets
  doubled = (num_targets << k for k in range(most.bit_length()))
  return [*(n for n in doubled if n < most), most]


def _whole(texts, begin) -> _Reading:
  length = len(texts[0])
  # Entry t of a row's losses is about the token at t + 1, begin included; the
  # first token of a text is never counted.
  parts = {'all': slice(len(begin), None)}
  for start, stop in position_buckets(length):
    first = len(begin) + max(start - 1, 0)
    parts[f'{start}-{stop}'] = slice(first, len(begin) + stop - 1)
  return _Reading({'length': length}, _rows(texts, begin), parts)


def _cut(texts, begin, num_targets, n) -> _Reading:
  length = len(texts[0])
  return _Reading(
    {'length': length, 'num_targets': num_targets, 'context': n},
    _rows([text[length - num_targets - n :] for text in texts], begin),
    {'targets': slice(-num_targets, None)},
  )


def _rows(texts, begin) -> list[np.ndarray]:
  return [np.concatenate([begin, text]).astype(np.int32) for text in texts]


def _measure(predictor, readings, path, asked_as) -> dict[str, dict[str, Any]]:
  """Records by name: those of the file, and what it lacks of `readings`."""
  records = {r['name']: r for r in open_records(path, asked_as)}
  for reading in readings:
    _check_texts(reading, records, path)
  starts = [_count_done(reading, records) for reading in readings]
  done, total = sum(starts), sum(len(reading.rows) for reading in readings)
  if done:
    _logger.info('perplexity: %d of %d texts are read already', done, total)
  with Progress('perplexity', total, done) as progress:
    for reading, start in zip(readings, starts, strict=True):
      if start == len(reading.rows):
        continue
      found = predictor().rows(reading.rows, start=start)
      for i, (losses, _) in enumerate(found, start):
        record = _record(reading, i, losses)
        add_records(path, [record], None if records else asked_as)
        records[record['name']] = record
        done += 1
        progress.update(done, {'loss': losses.mean()})
  return records


def _check_texts(reading, records, path) -> None:
  for i, name in enumerate(reading.names()):
    digest = _digest(reading.rows[i])
    if name in records and records[name]['tokens'] != digest:
      raise ConfigError(
        f'{path} holds losses of other texts (document {i} was'
        f' {records[name]["tokens"]}, and is {digest}): give another --out'
      )


def _count_done(reading, records) -> int:
  """Texts before the first that is missing; later ones are read again."""
  there = [name in records for name in reading.names()]
  return [*there, False].index(False)


def _record(reading, i, losses) -> dict[str, Any]:
  means = {part: losses[where].mean() for part, where in reading.parts.items()}
  return {
    'name': reading.names()[i],
    **reading.fields,
    'document': i,
    'tokens': _digest(reading.rows[i]),
    'losses': {part: float(mean) for part, mean in means.items()},
  }


def _digest(row) -> str:
  """Tells texts apart, should the files of `--text` have changed."""
  return hashlib.sha256(row.tobytes()).hexdigest()[:12]


def _mean(means, rng) -> Mean:
  """Over means of documents."""
  drawn = rng.integers(len(means), size=(_RESAMPLES, len(means)))
  low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
  return Mean(float(means.mean()), float(low), float(high))
