"""Any number of documents to the corpus that `prepare_corpus` would make.

    list      the sources -> tasks
    scan      every task: hashes and lengths                    on any machine
    choose    budgets, equal texts, a sample                    here, in numpy
    sample    the tasks with sampled documents: their texts     on any machine
    train     a tokenizer, if none is given                     here
    write     every task: tokens -> a shard of each store       on any machine
    finish    conversations, index, manifest, statistics        here

Who runs the tasks is the caller's choice: `run_here` one after the other (a
tokenizer uses all cores by itself), `prepare_beam.beam_runner` on any runner of
Apache Beam. The bytes are the same. A task's result is a file that is whole or
not there, so a run that was killed goes on with the tasks that it lacks, and
the corpus appears under its name when all is done.
"""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from longctx_jax.cache_dir import cache_dir
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data import prepare
from longctx_jax.data.chat import Chat
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.corpus_inputs import check_inputs, naming_source
from longctx_jax.data.corpus_settings import corpus_settings
from longctx_jax.data.corpus_statistics import corpus_statistics
from longctx_jax.data.counts import Counts
from longctx_jax.data.disk import full_disk, publish
from longctx_jax.data.documents import check_text_field
from longctx_jax.data.parts import Document
from longctx_jax.data.prepare import Corpus, open_corpus
from longctx_jax.data.prepare_choice import choose
from longctx_jax.data.prepare_steps import STORES, Job, Written, run_step
from longctx_jax.data.prepare_tasks import TASK_BYTES, Work, list_tasks
from longctx_jax.data.store_format import MANIFEST
from longctx_jax.data.store_writer import finish_store, write_store
from longctx_jax.data.stored_conversations import stored_conversations
from longctx_jax.data.tokenizer_files import (
  load_tokenizer,
  tokenizer_fingerprint,
)
from longctx_jax.progress import Progress
from longctx_jax.workdir import write_atomically

log = logging.getLogger(__name__)

STATISTICS = 'statistics.json'
# ours: what one machine holds in memory and trains a tokenizer on in minutes;
# the words of a corpus are in it many times over.
SAMPLE_CHARS = 50_000_000

# Calls the function for each of the numbers, anywhere; `done` tells how many
# are, at any time.
Runner = Callable[
  [Callable[[int], None], Sequence[int], Callable[[], int], Progress], None
]


def run_here(
  step: Callable[[int], None],
  numbers: Sequence[int],
  done: Callable[[], int],
  progress: Progress,
) -> None:
  """A `Runner`: one task after the other, in this process."""
  for number in numbers:
    step(number)
    progress.update(done())


def prepare_at_scale(
  config: CorpusConfig,
  directory: Path,
  *,
  seed: int,
  run: Runner = run_here,
  task_bytes: int = TASK_BYTES,
  page_tokens: int | None = None,
  sample_chars: int = SAMPLE_CHARS,
) -> Corpus:
  """Makes the corpus in `directory`, or goes on with it, or opens it.

  Its stores hold the documents that `prepare_corpus` stores, in the order in
  which the sources list them. Tokenizer and conversations are the same too,
  unless there is more text than `sample_chars`: they are made of that much.

  Raises:
    ConfigError: as `prepare_corpus`; or a file changed while it was read.
    OSError: the disk is full, or the like; the same call goes on from there.
  """
  directory = Path(directory)
  settings = corpus_settings(config, seed)
  chat = None
  partial = directory.with_name(f'{directory.name}.partial')
  with prepare.making(directory, '--out') as missing:
    if missing:
      job = Job(config, partial, page_tokens)
      try:
        chat = _make(job, settings, seed, run, task_bytes, sample_chars)
        publish(partial, directory)
      except Exception as error:
        advice = (
          f'make room for {directory} and give the same command again, which'
          f' goes on with what is in {partial}'
        )
        if full := full_disk(error, advice):
          raise full from error
        raise
    Work(partial).discard_done()
  return open_corpus(directory, settings, chat)


def _make(job, settings, seed, run, task_bytes, sample_chars) -> Chat:
  config, work = job.config, Work(job.corpus)
  check_inputs(config)
  tasks = list_tasks(config, cache_dir(), task_bytes=task_bytes)
  if not tasks:  # all files there are hold nothing
    prepare.check_both_there(0, 0, {})
  made_from = {
    'settings': settings,
    'page_tokens': job.page_tokens,
    'compression': config.compression,
    'sample_chars': sample_chars,
  }
  if config.tokenizer_path:
    made_from['tokenizer'] = tokenizer_fingerprint(config.tokenizer_path)
  if work.begin(made_from, tasks):
    log.info('corpus: going on with what is in %s', job.corpus)
  # What is given is looked at before hours of reading.
  chat = _given_chat(config, job.corpus)
  log.info('corpus: %d tasks of %d sources', len(tasks), len(config.sources))
  everything = range(len(tasks))
  _run_all('scan', 'scanned', job, everything, run)
  counts, chosen = _choose(config, work, tasks, sample_chars)
  documents = _sample(job, work, everything, run, needed=_reads_text(config))
  chat = chat or _trained_chat(config, documents, job.corpus)
  job = job._replace(tokenizer_fingerprint=chat.tokenizer.fingerprint)
  _forget_lost_shards(work, everything)
  _run_all('write', 'tokenised', job, everything, run)
  written = [work.load('write', number) for number in everything]
  accounts = {domain: Counts() for domain in config.sources}
  domains = list(config.sources)
  for task, scanned, each in zip(tasks, counts, written, strict=True):
    accounts[domains[task.source]] += scanned + each.counts
  _finish(job, written, accounts, settings, chosen)
  there = _is_finished(job.corpus / 'conversations')
  # Their files may have been mended since, for which documents are not redone.
  if config.conversation_files or not there:
    made = {}
    write_store(
      job.corpus / 'conversations',
      stored_conversations(config, chat, documents, seed, made),
      tokenizer_fingerprint=chat.tokenizer.fingerprint,
      settings=settings,
      accounts=made,
      compression=config.compression,
    )
  statistics = corpus_statistics(
    open_corpus(job.corpus, settings, chat),
    num_cut=sum(each.num_cut for each in written),
  )
  write_atomically(job.corpus / STATISTICS, json.dumps(statistics, indent=1))
  work.finish(STORES)
  return chat


def _run_all(step, label, job, numbers, run):
  """Runs a step on all tasks that lack it.

  Raises:
    ConfigError, OSError, ...: what a task raised, wherever it ran.
  """
  work = Work(job.corpus)
  work.discard('failed', work.saved('failed'))
  open_ = [number for number in numbers if not work.has(step, number)]
  before = len(numbers) - len(open_)
  if not open_:
    return

  def done():
    return len(work.saved(step))

  with Progress(f'corpus: {label}', len(numbers), before) as progress:
    try:
      run(functools.partial(run_step, step, job), open_, done, progress)
    except Exception:
      if failed := work.saved('failed'):
        raise work.load('failed', failed[0]) from None
      raise


def _choose(
  config, work, tasks, sample_chars
) -> tuple[list[Counts], tuple[int, int]]:
  """Writes what becomes of each document.

  Returns what each scan counted, and how many documents are chosen for
  training, and to be held out.
  """
  scanned = [work.load('scan', number) for number in range(len(tasks))]
  choices = choose(
    [each.scan for each in scanned],
    [task.source for task in tasks],
    [source.max_chars for source in config.sources.values()],
    deduplicate=config.filters.deduplicate,
    sample_chars=sample_chars,
  )
  training = heldout = 0
  for number, (choice, each) in enumerate(zip(choices, scanned, strict=True)):
    work.save('chosen', number, choice)
    held = each.scan.heldout & (choice.limits > 0)
    heldout += int(held.sum())
    training += int((choice.limits > 0).sum() - held.sum())
  accounts, problems = _problems(config, tasks, scanned)
  prepare.check_both_there(training, heldout, accounts, problems)
  return [each.counts for each in scanned], (training, heldout)


def _problems(config, tasks, scanned):
  """(counts of each source, first messages); logs them as `read_documents`.

  Raises:
    ConfigError: a source has no record with its text field.
  """
  accounts = {domain: Counts() for domain in config.sources}
  domains, first = list(config.sources), {}
  for task, each in zip(tasks, scanned, strict=True):
    domain = domains[task.source]
    accounts[domain] += each.counts
    for kind, message in each.problems.items():
      first.setdefault((domain, kind), message)
  for domain, source in config.sources.items():
    with naming_source(domain):
      check_text_field(
        source,
        accounts[domain],
        {kind: text for (of, kind), text in first.items() if of == domain},
      )
  for (domain, kind), message in first.items():
    log.warning(
      'corpus: %d documents of %s left out as %s, the first: %s',
      *(accounts[domain].documents[kind], domain, kind, message),
    )
  return accounts, first


def _reads_text(config) -> bool:
  """Whether a tokenizer or conversations are made of documents."""
  return not config.tokenizer_path or any(config.conversations.values())


def _sample(job, work, numbers, run, *, needed) -> list[Document]:
  """The sampled documents, in the order in which `prepare_corpus` has them."""
  if not needed:
    return []
  numbers = [n for n in numbers if work.load('chosen', n).sampled.any()]
  _run_all('sample', 'sampled', job, numbers, run)
  documents = []
  for number in numbers:
    source = work.load('tasks', number).source
    documents += [
      (source, order, number, place, document)
      for place, (order, document) in enumerate(work.load('sample', number))
    ]
  return [document for *_, document in sorted(documents, key=lambda d: d[:4])]


def _given_chat(config, directory) -> Chat | None:
  if not config.tokenizer_path:
    return None
  return prepare.given_chat(config, directory)


def _trained_chat(config, documents, directory) -> Chat:
  """The tokenizer that an earlier attempt has trained, or a new one."""
  if not (directory / 'tokenizer.model').exists():
    return prepare.trained_chat(config, documents, directory)
  template = TEMPLATES[config.chat_template]
  return Chat(load_tokenizer(directory, control=template.control), template)


def _is_finished(store: Path) -> bool:
  return (store / MANIFEST).is_file()


def _forget_lost_shards(work, numbers):
  """A run killed while it named the shards of a store has lost some of them."""
  for number in numbers:
    if not work.has('write', number):
      continue
    written: Written = work.load('write', number)
    shards = {name: getattr(written, name) for name in STORES}
    if any(
      not _is_finished(work.corpus / name) and not shard.path.is_file()
      for name, shard in shards.items()
    ):
      work.discard('write', [number])


def _finish(job, written, accounts, settings, chosen):
  of_stores = (accounts, prepare.heldout_accounts(accounts))
  for name, of_store, seen in zip(STORES, of_stores, chosen, strict=True):
    shards = [getattr(each, name) for each in written]
    kept = sum(shard.counts.documents for shard in shards)
    prepare.check_any_kept(job.config, kept, seen, heldout=name == 'heldout')
    if not _is_finished(job.corpus / name):
      finish_store(
        job.corpus / name,
        shards,
        tokenizer_fingerprint=job.tokenizer_fingerprint,
        settings=settings,
        accounts=of_store,
      )
