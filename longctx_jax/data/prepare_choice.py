"""Which documents of a large corpus are kept: decided on hashes, not on texts.

    scanned documents      a b c d e f g      (source 0)     h i j   (source 1)
    in the order of hash   c f a g b e d                     i h j
    within max_chars       c f a g'                          i h j
    equal texts once       c f   g'                          i   j

(g' is g cut to fit; a and h have the text of f.) This takes about 100 bytes a
document: one machine with 10 GB of memory decides for 10^8 of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Scan(NamedTuple):
  """What is known of the documents of a task, in order, without their texts."""

  # [n, 2] uint64: equal for equal texts.
  keys: np.ndarray
  # [n] float64: see `documents.order_of`.
  order: np.ndarray
  # [n] int64: characters that may be kept, 0 for a document that is too short.
  chars: np.ndarray
  # [n] bool: kept from training.
  heldout: np.ndarray


class Choice(NamedTuple):
  """What becomes of the documents of a task, in order."""

  # [n] int64: characters to keep; 0 drops the document.
  limits: np.ndarray
  # [n] bool: dropped because its text is kept elsewhere.
  doubles: np.ndarray
  # [n] bool: shown to the tokenizer, and made conversations of.
  sampled: np.ndarray


def choose(
  scans: Sequence[Scan],
  sources: Sequence[int],
  max_chars: Sequence[int],
  *,
  deduplicate: bool,
  sample_chars: int,
) -> list[Choice]:
  """A choice for each task, the one that `prepare_corpus` makes in memory.

  Args:
    sources: number of the source of each task, ascending.
    max_chars: budget of each source.
    sample_chars: documents are sampled until they have so many characters; the
      first in the order of hashes, of all sources together.
  """
  sizes = [len(scan.order) for scan in scans]
  keys, order, chars, heldout = (
    np.concatenate(columns) for columns in zip(*scans, strict=True)
  )
  source = np.repeat(np.asarray(sources, np.int64), sizes)
  # Of equal names, the first that is read comes first.
  ranked = np.lexsort((np.arange(len(order)), order, source))
  ranked = ranked[chars[ranked] > 0]
  limits, is_cut = _within_budget(
    chars[ranked], source[ranked], np.asarray(max_chars)
  )
  doubles = np.zeros(len(ranked), bool)
  if deduplicate:
    doubles = _doubles(keys[ranked], candidates=(limits > 0) & ~is_cut)
    limits[doubles] = 0
  # Back to the order in which they are read.
  all_limits = np.zeros(len(order), np.int64)
  all_limits[ranked] = limits
  all_doubles = np.zeros(len(order), bool)
  all_doubles[ranked] = doubles
  sampled = _sample(order, all_limits * ~heldout, sample_chars)
  ends = np.cumsum(sizes)[:-1]
  return [
    Choice(*columns)
    for columns in zip(
      *(np.split(a, ends) for a in (all_limits, all_doubles, sampled)),
      strict=True,
    )
  ]


def _within_budget(chars, source, max_chars):
  """(characters to keep, whether that is less than all), in ranked order.

  The document that crosses the budget is cut to fit, and the rest is dropped.
  """
  limits = np.zeros_like(chars)
  for number, budget in enumerate(max_chars.tolist()):
    own = source == number
    before = np.cumsum(chars[own]) - chars[own]
    limits[own] = np.clip(budget - before, 0, chars[own])
  return limits, (limits > 0) & (limits < chars)


def _doubles(keys, candidates):
  """Whether an earlier candidate has the same key; [n, 2] and [n]."""
  (places,) = np.nonzero(candidates)
  by_key = places[np.lexsort((places, *keys[places].T))]
  same = (keys[by_key[1:]] == keys[by_key[:-1]]).all(axis=1)
  doubles = np.zeros(len(keys), bool)
  doubles[by_key[1:][same]] = True
  return doubles


def _sample(order, chars, sample_chars):
  ranked = np.lexsort((np.arange(len(order)), order))
  before = np.cumsum(chars[ranked]) - chars[ranked]
  sampled = np.zeros(len(order), bool)
  sampled[ranked] = (before < sample_chars) & (chars[ranked] > 0)
  return sampled
