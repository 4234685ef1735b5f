"""The steps of preparing a large corpus: functions of a task and nothing else.

    scan     reads a task's documents, keeps hashes and lengths
    sample   reads it again, keeps the texts that a tokenizer is trained on
    write    reads it again, tokenises what is kept, writes two shards

Reading is fast beside tokenising, so no text is kept in between. Any process
may run a step on any task in any order, and again: the result is the same.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.counts import HELDOUT, Counts
from longctx_jax.data.document_filters import stored_text, text_key
from longctx_jax.data.documents import cut_text, is_heldout, order_of
from longctx_jax.data.parts import Document, Part, Problem
from longctx_jax.data.prepare import tokenise
from longctx_jax.data.prepare_choice import Choice, Scan
from longctx_jax.data.prepare_tasks import Task, Work
from longctx_jax.data.readers import read_part
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_writer import Shard, StoredDocument, write_shard
from longctx_jax.data.tokenizer import Tokenizer, TokenizerError
from longctx_jax.data.tokenizer_files import load_tokenizer

# Stores that are written task by task.
STORES = ('documents', 'heldout')
# What a user can cause and mend, wherever it happens.
USER_ERRORS = (ConfigError, OSError, StoreError, TokenizerError)


class Job(NamedTuple):
  """What a process must know, whichever it is; may be pickled."""

  config: CorpusConfig
  corpus: Path  # the unfinished corpus
  page_tokens: int | None
  tokenizer_fingerprint: str = ''  # of the one in `corpus`, once it is there


class Written(NamedTuple):
  """The shards of a task, and what became of its documents."""

  documents: Shard
  heldout: Shard
  counts: Counts
  num_cut: int  # documents that were longer than filters.max_tokens


def run_step(step: str, job: Job, number: int) -> None:
  """Runs one step on one task, unless it is done; keeps a user's error.

  Runners of other machines tell of an error in pages of their own: the one
  line that says what to do is read from the disk.
  """
  work = Work(job.corpus)
  if work.has(step, number):
    return
  try:
    work.save(step, number, _STEPS[step](job, work, number))
  except USER_ERRORS as error:
    work.save('failed', number, error)
    raise


class Scanned(NamedTuple):
  """A scan, with the counts and problems of its documents."""

  scan: Scan
  counts: Counts
  problems: dict[str, str]  # kind -> the first message


def _scan(job: Job, work: Work, number: int) -> Scanned:
  task = work.load('tasks', number)
  counts, problems = Counts(), {}
  least = job.config.filters.least_chars
  keys, order, chars, heldout = [], [], [], []
  for part, item, text in _read(task):
    if isinstance(item, Problem):
      counts.see()
      counts.drop(item.kind)
      problems.setdefault(item.kind, item.message)
      continue
    counts.see(len(item.text))
    whole = stored_text(item.text, part.source)
    counts.trim('line_ends', len(item.text) - len(whole))
    fits = len(text) >= least
    if fits:
      counts.trim('cut', len(whole) - len(text))
    else:
      counts.drop('too_short', len(whole))
    keys.append(text_key(text))
    order.append(order_of(item.name))
    chars.append(len(text) * fits)
    heldout.append(is_heldout(item.name, job.config.heldout_frac))
  scan = Scan(
    np.frombuffer(b''.join(keys), np.uint64).reshape(-1, 2),
    np.array(order, np.float64),
    np.array(chars, np.int64),
    np.array(heldout, bool),
  )
  return Scanned(scan, counts, problems)


def _sample(job: Job, work: Work, number: int) -> list[tuple[float, Document]]:
  choice = work.load('chosen', number)
  return [
    (order_of(document.name), document)
    for i, document, _ in _kept(job, work, number, choice)
    if choice.sampled[i]
  ]


def _write(job: Job, work: Work, number: int) -> Written:
  choice, scan = work.load('chosen', number), work.load('scan', number).scan
  counts, num_cut, heldout = Counts(), 0, []
  for kind, dropped in (
    ('double', choice.doubles),
    ('over_budget', (choice.limits == 0) & ~choice.doubles & (scan.chars > 0)),
  ):
    for chars in scan.chars[dropped].tolist():
      counts.drop(kind, chars)

  def kept() -> Iterator[Document]:
    for _, document, length in _kept(job, work, number, choice, counts):
      counts.trim('cut', length - len(document.text))
      yield document

  def training() -> Iterator[StoredDocument]:
    nonlocal num_cut
    tokenizer = _tokenizer(
      job.corpus, job.config.chat_template, job.tokenizer_fingerprint
    )
    for document, tokens, done in tokenise(job.config, tokenizer, kept()):
      if tokens is None:
        counts.drop(done, len(document.text))
        continue
      counts.keep(len(document.text))
      num_cut += done == 'cut'
      stored = StoredDocument(document.name, document.domain, tokens, None)
      if is_heldout(document.name, job.config.heldout_frac):
        counts.move(HELDOUT, len(document.text))
        heldout.append(stored)
      else:
        yield stored

  # In this order: the second is complete when the first is written.
  shards = [
    write_shard(
      work.shard_path(name),
      part,
      compression=job.config.compression,
      page_tokens=job.page_tokens,
    )
    for name, part in zip(STORES, (training(), heldout), strict=True)
  ]
  return Written(*shards, counts, num_cut)


_STEPS = {'scan': _scan, 'sample': _sample, 'write': _write}


def _read(task: Task) -> Iterator[tuple[Part, Document | Problem, str]]:
  """Items of all parts in order, with the text that a document may keep."""
  for part in task.parts:
    for item in read_part(part):
      text = ''
      if isinstance(item, Document):
        # No document takes more than a quarter of its domain.
        text = cut_text(
          stored_text(item.text, part.source), part.source.max_chars // 4
        )
      yield part, item, text


def _kept(job, work, number, choice: Choice, counts: Counts | None = None):
  """(place, document, length before the last cut) of those that are kept.

  Raises:
    ConfigError: the texts are not those that were scanned.
  """
  scan = work.load('scan', number).scan
  task = work.load('tasks', number)
  place = 0
  for _, item, text in _read(task):
    if isinstance(item, Problem):
      continue
    same = (
      place < len(scan.keys) and text_key(text) == scan.keys[place].tobytes()
    )
    if not same:
      raise _changed(work, task)
    limit = int(choice.limits[place])
    if limit:
      shorter = cut_text(text, limit)
      if len(shorter) >= job.config.filters.least_chars:
        yield place, item._replace(text=shorter), len(text)
      elif counts is not None:
        counts.drop('over_budget', len(text))
    place += 1
  if place < len(scan.keys):
    raise _changed(work, task)


def _changed(work, task):
  paths = sorted({part.path or part.name for part in task.parts})
  return ConfigError(
    f'{paths[0]}{" or a file after it" if len(paths) > 1 else ""} has changed'
    f' since it was scanned: remove {work.corpus} and prepare the corpus again'
  )


@functools.lru_cache(maxsize=1)
def _tokenizer(
  directory: Path, chat_template: str, fingerprint: str
) -> Tokenizer:
  del fingerprint  # another tokenizer in the same place is not the one cached
  return load_tokenizer(directory, control=TEMPLATES[chat_template].control)
