"""Loss by position, and by how much comes before the same tokens.

By position: of each document the first `length` tokens in one pass; the mean
loss of the tokens between 64 and 128, between 128 and 256, and so on. Later
tokens of a document may be harder or easier, so this mixes two things.

By context: the last `targets` tokens of the same stretch, given n tokens before
them, for n = targets, 2 targets, 4 targets, ... Only the context differs, so
this is what the context is worth.

Both are means of documents, with an interval that is drawn over documents: 95%
of means of as many documents drawn with replacement.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.evals.predict import Predictor
from longctx_jax.evals.validation import position_buckets
from longctx_jax.progress import Progress

_RESAMPLES = 1000  # ours: the interval's own error is a thirtieth of its width


class Mean(NamedTuple):
  """Mean loss in nats a token, and where 95% of resampled means lie."""

  loss: float
  low: float
  high: float


def perplexity(
  predictor: Predictor,
  documents: Sequence[np.ndarray],
  *,
  length: int,
  num_targets: int,
  begin: np.ndarray,
  seed: int,
) -> dict[str, Any]:
  """Losses of documents of at least `length` tokens, ready for JSON.

  Args:
    predictor: the model.
    documents: ids of each; shorter ones are left out.
    length: tokens of each that are read.
    num_targets: tokens at its end whose context is varied.
    begin: ids that every text begins with; they count as no position.
    seed: of the resampling.

  Raises:
    ConfigError: no document is long enough, or no token for targets.
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
  rng = np.random.default_rng(seed)
  with Progress('perplexity', len(texts) * (1 + len(contexts))) as progress:
    losses = _losses(predictor, texts, begin, progress, 0)
    cut_losses = {}
    for i, n in enumerate(contexts, 1):
      cut = [text[length - num_targets - n :] for text in texts]
      found = _losses(predictor, cut, begin, progress, i * len(texts))
      cut_losses[n] = found[:, -num_targets:]
  by_position = {
    f'{start}-{stop}': _mean(losses[:, max(start - 1, 0) : stop - 1], rng)
    for start, stop in position_buckets(length)
  }
  by_context = {str(n): _mean(each, rng) for n, each in cut_losses.items()}
  return {
    'num_documents': len(texts),
    'length': length,
    'num_targets': num_targets,
    'loss': _mean(losses, rng)._asdict(),
    'by_position': {k: m._asdict() for k, m in by_position.items()},
    'by_context': {k: m._asdict() for k, m in by_context.items()},
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


def _losses(predictor, texts, begin, progress, done) -> np.ndarray:
  """[documents, tokens - 1] losses of the tokens after the first.

  Texts of which `done` had been read are counted on from there.
  """
  rows = [np.concatenate([begin, text]).astype(np.int32) for text in texts]
  found = []
  for losses, _ in predictor.rows(rows):
    found.append(losses)
    progress.update(done + len(found), {'loss': losses.mean()})
  return np.stack(found)[:, len(begin) :]


def _mean(losses, rng) -> Mean:
  """Over [documents, tokens]."""
  means = losses.mean(axis=1)
  drawn = rng.integers(len(means), size=(_RESAMPLES, len(means)))
  low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
  return Mean(float(means.mean()), float(low), float(high))
