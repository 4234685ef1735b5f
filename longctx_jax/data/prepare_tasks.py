"""Tasks of a large corpus, and where their results lie between steps.

A task is a run of parts of one source, and becomes one shard of each store:

    sources   code: p p p p p p     books: p p
    tasks           [0    ] [1  ]          [2]

No document ever moves from the task that read it to another, so that nothing
is held in memory or written twice in order to be sorted. Rows are drawn by
planners that shuffle: the order of a store means nothing to them.
"""

import hashlib
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data.corpus_inputs import naming_source
from longctx_jax.data.parts import PART_BYTES, Part
from longctx_jax.data.readers import ONE_PER_PART, list_parts

# ours: seconds of tokenising, so that a few hundred MB keep many cores busy to
# the end; tasks are larger where there would be more than MAX_TASKS.
TASK_BYTES = 16 << 20
# ours: both stores' shards stay within 1024, the usual limit of open files.
MAX_TASKS = 256
# ours: about what a package or module has; nobody looks beforehand.
_TREE_BYTES = 1 << 20


class Task(NamedTuple):
  """Parts that one process reads, one after the other."""

  source: int  # its number among the config's sources
  parts: tuple[Part, ...]


def list_tasks(
  config: CorpusConfig, cache_dir: Path, *, task_bytes: int = TASK_BYTES
) -> list[Task]:
  """All parts of all sources in order, as tasks of about the same size.

  Depends on names and sizes of files alone, not on who runs the tasks.

  Raises:
    ConfigError: as `list_parts`.
  """
  part_bytes = min(task_bytes, PART_BYTES)
  listed = []
  for domain, source in config.sources.items():
    with naming_source(domain):
      parts = list_parts(source, domain, cache_dir, part_bytes=part_bytes)
    listed.append([(part, _num_bytes(part)) for part in parts])
  total = sum(size for parts in listed for _, size in parts)
  # Each source leaves a last task that is not full.
  limit = max(task_bytes, total // max(MAX_TASKS - len(listed), 1))
  return [
    Task(number, parts)
    for number, of_source in enumerate(listed)
    for parts in _groups(of_source, limit)
  ]


def _groups(parts, limit) -> Iterator[tuple[Part, ...]]:
  group, total = [], 0
  for part, size in parts:
    group.append(part)
    total += size
    if total >= limit:
      yield tuple(group)
      group, total = [], 0
  if group:
    yield tuple(group)


def _num_bytes(part):
  if part.source.kind == 'jsonl' and part.stop > part.start:
    return part.stop - part.start
  if part.source.kind in ONE_PER_PART:
    return _file_state(part.path)[0] or _TREE_BYTES
  return PART_BYTES


def _file_state(path) -> tuple[int, int]:
  """(bytes, time of the last change in ns) of a file, zeros if it is none."""
  if not path or not os.path.isfile(path):
    return 0, 0
  state = os.stat(path)
  return state.st_size, state.st_mtime_ns


class Work:
  """Files of a corpus in the making, on a disk that all processes share.

  corpus.partial/work/made_from     hash of settings, tokenizer, input files
  corpus.partial/work/tasks/00012   what the steps read and write:
  corpus.partial/work/scan/00012    each whole, or not there
  corpus.partial.done/              all of it, once there is nothing left to do
  """

  def __init__(self, directory: Path):
    self.corpus = directory
    self._directory = directory / 'work'
    self._done = directory.with_name(f'{directory.name}.done')

  def begin(self, made_from: dict[str, Any], tasks: Sequence[Task]) -> bool:
    """Keeps what is there of the same work, else starts anew; whether it did.

    The same: settings, and names, sizes and times of all files of documents.
    """
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    for task in tasks:
      digest.update(repr(task).encode())
      for part in task.parts:
        digest.update(repr(_file_state(part.path)).encode())
    # Whole, if the corpus still has its old name: only that was left to do.
    finished = self.corpus.exists() and not self._directory.exists()
    if finished and self._done.exists():
      os.replace(self._done, self._directory)
    self.discard_done()
    mark, wanted = self._directory / 'made_from', digest.hexdigest()
    resumes = mark.is_file() and mark.read_text() == wanted
    if not resumes:
      if self.corpus.exists():
        shutil.rmtree(self.corpus)
      for number, task in enumerate(tasks):
        self.save('tasks', number, task)
      # Last: without it, all of this is begun again.
      mark.write_text(wanted)
    return resumes

  def save(self, step: str, number: int, value: Any) -> None:
    """Writes what a step made of a task, as a whole."""
    path = self._path(step, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its own: a runner may try the same task twice at the same time.
    partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
    try:
      with partial.open('wb') as file:
        pickle.dump(value, file)
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)

  def load(self, step: str, number: int) -> Any:
    """What `save` wrote.

    Raises:
      ConfigError: the file is damaged, as a power failure may leave it: unlike
        a shard, it is not waited for until it is on the disk.
    """
    path = self._path(step, number)
    try:
      return pickle.loads(path.read_bytes())
    except (EOFError, ValueError, pickle.UnpicklingError) as error:
      raise ConfigError(
        f'{path} is damaged ({error}): remove {self.corpus} and give the same'
        ' command again'
      ) from error

  def has(self, step: str, number: int) -> bool:
    """Whether a step has done a task."""
    return self._path(step, number).is_file()

  def saved(self, step: str) -> list[int]:
    """Numbers of the tasks that a step has done."""
    folder = self._directory / step
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(int(path.name) for path in found if path.suffix == '')

  def discard(self, step: str, numbers: Iterable[int]) -> None:
    """Removes what a step made."""
    for number in numbers:
      self._path(step, number).unlink(missing_ok=True)

  def shard_path(self, store: str) -> Path:
    """A new name for a shard, where `finish_store` looks for it."""
    folder = self.corpus / f'{store}.partial'
    folder.mkdir(exist_ok=True)
    return folder / uuid.uuid4().hex

  def finish(self, stores: Iterable[str]) -> None:
    """Puts all of it aside, and removes shards that were written twice.

    Removing takes a while, and a run killed meanwhile would leave half of it to
    go on with: that waits until the corpus has its name.
    """
    for store in stores:
      shutil.rmtree(self.corpus / f'{store}.partial', ignore_errors=True)
    os.replace(self._directory, self._done)

  def discard_done(self) -> None:
    """Removes what `finish` put aside."""
    shutil.rmtree(self._done, ignore_errors=True)

  def _path(self, step, number):
    return self._directory / step / f'{number:05d}'
