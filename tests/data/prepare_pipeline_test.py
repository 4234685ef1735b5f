"""Large corpora: as in memory, whoever runs the tasks, whatever interrupts."""

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import prepare, prepare_steps
from longctx_jax.data.counts import Counts
from longctx_jax.data.parts import DocumentError
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.prepare_pipeline import (
  STATISTICS,
  prepare_at_scale,
  run_here,
)
from longctx_jax.data.prepare_tasks import list_tasks
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_verify import verify_store
from longctx_jax.data.store_writer import StoredDocument, write_store
from longctx_jax.data.tokenizer import TokenizerError
from tests.architecture_test import ROOT
from tests.data.large_corpus import (
  DROPS,
  PREPARE,
  config_of,
  config_of_drops,
  write_drops,
  write_texts,
)
from tests.data.small_tokenizers import write_folder


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def prepared(texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  return directory, prepare_at_scale(config_of(texts), directory, **PREPARE)


def contents(store):
  """(name, domain, tokens) of all documents, in an order of their own."""
  return sorted(
    (
      store.name(i),
      store.domain_names[store.domain_ids[i]],
      store.read(i, 0, n)[0].tolist(),
    )
    for i, n in enumerate(store.lengths.tolist())
  )


def files_of(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'filters': {}, 'line_ends': 'keep'},
    {'filters': {'max_tokens': 300, 'too_long': 'drop', 'min_tokens': 90}},
    {'max_chars': 10**9, 'max_files': 10**9},
    {'max_chars': 7_000, 'heldout_frac': 0.5},
    {'max_files': 7_400},  # leaves too little for the document that crosses it
  ],
  ids=str,
)
def test_a_large_corpus_is_the_one_that_is_made_in_memory(
  texts, tmp_path, changes
):
  config = config_of(texts, **changes)
  assert len(list_tasks(config, tmp_path, task_bytes=4000)) > 10
  expected = prepare_corpus(config, tmp_path / 'a', seed=0)
  made = prepare_at_scale(config, tmp_path / 'b', **PREPARE)
  assert made.tokenizer.fingerprint == expected.tokenizer.fingerprint
  assert contents(made.documents) == contents(expected.documents)
  assert contents(made.heldout) == contents(expected.heldout)
  assert made.conversations.fingerprint == expected.conversations.fingerprint
  # Of files, not all are read in memory once the budget is full.
  for each in (made, expected):
    assert each.documents.accounts.keys() == {'files', 'records'}
  assert (
    made.documents.accounts['records'] == expected.documents.accounts['records']
  )
  assert made.conversations.accounts == expected.conversations.accounts
  # And a run opens either.
  prepare_corpus(config, tmp_path / 'b', seed=0)


def test_every_kind_of_drop_is_in_the_corpus_and_accounted_for(prepared):
  directory, corpus = prepared
  statistics = json.loads((directory / STATISTICS).read_text())
  documents = statistics['counts']['documents']
  assert set(documents) == {
    *('seen', 'kept', 'double', 'over_budget', 'too_short'),
    *('bad_json', 'bad_utf8', 'empty', 'no_text_field'),
  }
  assert documents['seen'] == 31 + 2 + 6 + 31 + 3 + 3
  assert documents['kept'] == len(corpus.documents) + len(corpus.heldout)
  chars = statistics['counts']['chars']
  assert chars['seen'] == sum(n for k, n in chars.items() if k != 'seen')
  assert chars['line_ends'] > 0
  longest = max(corpus.documents.lengths.max(), corpus.heldout.lengths.max())
  assert longest == 700
  assert statistics['cut_to_max_tokens'] > 0


def test_manifests_add_up_whatever_becomes_of_documents(tmp_path):
  config = config_of_drops(write_drops(tmp_path / 'texts'))
  corpus = prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  manifests = {
    name: json.loads((tmp_path / 'c' / name / 'manifest.json').read_text())
    for name in ('documents', 'heldout')
  }
  drops = set()
  for name, manifest in manifests.items():
    domains = {d['name']: d['documents'] for d in manifest['domains']}
    for source, counts in manifest['counts'].items():
      for unit in counts.values():
        assert unit['seen'] == sum(n for k, n in unit.items() if k != 'seen')
      assert counts['documents']['kept'] == domains[source], (name, source)
      drops |= set(counts['documents'])
  assert drops == {'seen', 'kept', 'training', 'heldout', *DROPS}
  training, heldout = (each['counts'] for each in manifests.values())
  # Files, and lines; that of a bomb counts as one.
  assert {k: n['documents']['seen'] for k, n in training.items()} == {
    'files': 31 + 3,
    'records': 6 + 31 + 3 + 3,
    'named': 11 + 11 + 1,
  }
  assert sum(n['documents']['kept'] for n in training.values()) == len(
    corpus.documents
  )
  assert sum(n['documents']['heldout'] for n in training.values()) == len(
    corpus.heldout
  )
  assert (
    heldout['named']['documents']['training']
    == (training['named']['documents']['kept'])
  )


def test_stores_that_count_differently_are_no_corpus(prepared, tmp_path):
  directory, corpus = prepared
  shutil.copytree(directory, tmp_path / 'c')
  documents = [StoredDocument('a', 'files', np.ones(9, np.int32), None)]
  counts = Counts()
  counts.see()
  counts.keep(0)
  write_store(
    tmp_path / 'c' / 'heldout',
    documents,
    tokenizer_fingerprint=corpus.tokenizer.fingerprint,
    settings=corpus.heldout.settings,
    accounts={'files': counts},
  )
  with pytest.raises(StoreError, match='its documents and its heldout count'):
    open_corpus(tmp_path / 'c')


def test_task_sizes_change_shards_and_not_documents(texts, prepared, tmp_path):
  config = config_of(texts)
  made = prepare_at_scale(config, tmp_path / 'c', seed=0)
  names = [made.documents.name(i) for i in range(len(made.documents))]
  in_tasks = prepared[1].documents
  assert names == [in_tasks.name(i) for i in range(len(in_tasks))]
  assert contents(made.documents) == contents(in_tasks)
  assert made.documents.fingerprint != in_tasks.fingerprint


def run_anyhow(step, numbers, done, progress):
  """In another order, each of them twice, as runners that retry may do."""
  numbers = [*numbers, *numbers]
  random.Random(0).shuffle(numbers)
  for number in numbers:
    step(number)
  name, job = step.args
  if name == 'write':
    # What is done is not done again.
    shards = list((job.corpus / 'documents.partial').iterdir())
    assert len(shards) == len(set(numbers))


def test_the_bytes_do_not_depend_on_who_runs_the_tasks(
  texts, prepared, tmp_path
):
  prepare_at_scale(config_of(texts), tmp_path / 'c', run=run_anyhow, **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])
  assert not verify_store(tmp_path / 'c' / 'documents').damage


class Stopper:
  """A runner that stops before task number `stop` of a step."""

  def __init__(self, step, stop):
    self.steps, self._step, self._stop = [], step, stop

  def __call__(self, step, numbers, done, progress):
    name = step.args[0]
    for i, number in enumerate(numbers):
      if (name, i) == (self._step, self._stop):
        raise KeyboardInterrupt
      self.steps.append((name, number))
      step(number)


@pytest.mark.parametrize('step', ['scan', 'sample', 'write'])
def test_a_stopped_run_goes_on_with_the_tasks_that_are_left(
  texts, prepared, tmp_path, step
):
  config, directory = config_of(texts), tmp_path / 'c'
  first, second = Stopper(step, 3), Stopper('', 0)
  with pytest.raises(KeyboardInterrupt):
    prepare_at_scale(config, directory, run=first, **PREPARE)
  assert not directory.exists()
  prepare_at_scale(config, directory, run=second, **PREPARE)
  assert not set(first.steps) & set(second.steps)
  assert files_of(directory) == files_of(prepared[0])
  assert not directory.with_name('c.partial').exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda directory: config_of(directory, heldout_frac=0.3), 'settings'),
    (
      lambda directory: (
        (directory / 'files' / '3.txt').write_text('another text\n' * 90),
        config_of(directory),
      )[1],
      'a file',
    ),
  ],
  ids=['settings', 'a file'],
)
def test_a_run_of_other_settings_or_files_starts_anew(
  tmp_path, change, message
):
  texts = write_texts(tmp_path / 'texts')
  with pytest.raises(KeyboardInterrupt):
    prepare_at_scale(
      config_of(texts), tmp_path / 'c', run=Stopper('write', 3), **PREPARE
    )
  config = change(texts)
  runs = Stopper('', 0)
  prepare_at_scale(config, tmp_path / 'c', run=runs, **PREPARE)
  assert ('scan', 0) in runs.steps, message
  prepare_at_scale(config, tmp_path / 'd', **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(tmp_path / 'd')


def test_a_file_that_changes_meanwhile_is_named(tmp_path):
  texts = write_texts(tmp_path / 'texts')

  def change_then_run(step, numbers, done, progress):
    if step.args[0] == 'write':
      (texts / 'files' / '0.txt').write_text('another text\n' * 90)
    run_here(step, numbers, done, progress)

  with pytest.raises(ConfigError, match=r'0\.txt.* has changed .* remove '):
    prepare_at_scale(
      config_of(texts), tmp_path / 'c', run=change_then_run, **PREPARE
    )


def test_no_second_run_makes_the_same_corpus(texts, prepared, tmp_path):
  config = config_of(texts)

  def start_another(step, numbers, done, progress):
    for prepare_again, flag in (
      (lambda: prepare_at_scale(config, tmp_path / 'c', **PREPARE), '--out'),
      (lambda: prepare_corpus(config, tmp_path / 'c', seed=0), '--workdir'),
    ):
      with pytest.raises(ConfigError, match=rf'c is in use .* another {flag}'):
        prepare_again()
    run_here(step, numbers, done, progress)

  prepare_at_scale(config, tmp_path / 'c', run=start_another, **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])
  assert [path.name for path in tmp_path.iterdir()] == ['c']


def test_a_corpus_that_was_just_made_is_taken(
  texts, prepared, tmp_path, monkeypatch
):
  @contextlib.contextmanager
  def lock_when_another_has_ended(directory, file, flag):
    shutil.copytree(prepared[0], directory)
    yield

  monkeypatch.setattr(prepare, 'directory_lock', lock_when_another_has_ended)
  runs = Stopper('', 0)
  prepare_at_scale(config_of(texts), tmp_path / 'c', run=runs, **PREPARE)
  prepare_corpus(config_of(texts), tmp_path / 'c', seed=0)
  assert runs.steps == []
  assert files_of(tmp_path / 'c') == files_of(prepared[0])


def prepare_elsewhere(*arguments):
  command = [sys.executable, '-m', 'tests.data.killed_prepare']
  return subprocess.run(
    [*command, *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize(
  ('file_bytes', 'begun'),
  # For no task; for what steps leave, and not for a shard.
  [(200, []), (12_000, ['scan', 'sample'])],
)
def test_a_full_disk_is_named_and_the_next_run_goes_on(
  texts, prepared, tmp_path, file_bytes, begun
):
  done = prepare_elsewhere(texts, tmp_path / 'c', 0, file_bytes)
  assert done.returncode == 1, done.stderr
  (line,) = done.stdout.splitlines()
  assert 'File too large: make room for ' in line
  assert f'{tmp_path / "c"} and give the same command again' in line
  assert not (tmp_path / 'c').exists()
  assert [*(tmp_path / 'c.partial').glob('*.partial/*')] == []
  runs = Stopper('', 0)
  prepare_at_scale(config_of(texts), tmp_path / 'c', run=runs, **PREPARE)
  assert not {step for step, _ in runs.steps} & set(begun)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])


def kill_and_go_on(texts, directory, replaces):
  killed = prepare_elsewhere(texts, directory, replaces)
  assert killed.returncode == 9, killed.stderr
  assert not directory.exists()
  prepare_at_scale(config_of(texts), directory, **PREPARE)
  return files_of(directory)


def test_a_killed_run_ends_in_the_same_bytes(texts, prepared, tmp_path):
  num_tasks = len(list_tasks(config_of(texts), tmp_path, task_bytes=4000))
  # While tasks are listed, and scanned, a third of them each.
  made = kill_and_go_on(texts, tmp_path / 'c', num_tasks + num_tasks // 3)
  assert made == files_of(prepared[0])


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_in_the_same_bytes(
  texts, prepared, tmp_path
):
  done = prepare_elsewhere(texts, tmp_path / 'whole')
  assert files_of(tmp_path / 'whole') == files_of(prepared[0])
  total = int(done.stdout)
  # All of the end, where shards and stores get their names.
  for n in [*range(1, total - 60, 37), *range(total - 60, total + 1, 3)]:
    made = kill_and_go_on(texts, tmp_path / f'{n}', n)
    assert made == files_of(prepared[0]), n


def test_an_unreadable_document_stops_or_is_counted(texts, tmp_path, caplog):
  config = config_of(texts)
  with caplog.at_level('WARNING'):
    prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  assert any(
    '1 documents of records left out as bad_json' in message
    for message in caplog.messages
  )
  source = {'kind': 'jsonl', 'max_chars': 10**6, 'on_problem': 'stop'}
  source['path'] = str(texts / 'records.jsonl')
  config = config_of(texts, sources={'records': source})
  with pytest.raises(
    DocumentError, match=r'records\.jsonl, line 41: it has no text'
  ):
    prepare_at_scale(config, tmp_path / 'd', **PREPARE)
  assert not (tmp_path / 'd').exists()


def test_a_tokenizer_is_looked_at_before_anything_is_read(texts, tmp_path):
  config = config_of(texts, tokenizer_path=str(tmp_path / 'none.model'))
  runs = Stopper('', 0)
  with pytest.raises(TokenizerError, match=r'none\.model'):
    prepare_at_scale(config, tmp_path / 'c', run=runs, **PREPARE)
  assert runs.steps == []


def test_a_tokenizer_that_fails_stops_the_run_and_leaves_no_corpus(
  texts, prepared, tmp_path, monkeypatch
):
  class Failing:
    def encode_batch(self, batch):
      raise RuntimeError('out of ids')

    bos_id = eos_id = 0

  monkeypatch.setattr(prepare_steps, '_tokenizer', lambda *_: Failing())
  with pytest.raises(RuntimeError, match='out of ids'):
    prepare_at_scale(config_of(texts), tmp_path / 'c', **PREPARE)
  assert not (tmp_path / 'c').exists()
  monkeypatch.undo()
  prepare_at_scale(config_of(texts), tmp_path / 'c', **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])


def test_another_given_tokenizer_starts_anew(texts, tmp_path):
  given = write_folder(
    tmp_path / 'given', bos_token='<s>', eos_token='<|eot_id|>'
  )
  config = config_of(texts, tokenizer_path=str(given), vocab_size=420)
  with pytest.raises(KeyboardInterrupt):
    prepare_at_scale(config, tmp_path / 'c', run=Stopper('write', 3), **PREPARE)
  write_folder(given, bos_token='</s>', eos_token='<|eot_id|>')
  made = prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  firsts = {
    int(made.documents.read(i, 0, 1)[0][0]) for i in range(len(made.documents))
  }
  assert firsts == {made.tokenizer.control_id('</s>')}


def test_more_text_than_the_sample_trains_on_the_first_of_it(texts, tmp_path):
  config = config_of(texts)
  made = {
    chars: prepare_at_scale(
      config, tmp_path / f'{chars}', sample_chars=chars, **PREPARE
    )
    for chars in (15_000, 10**6)
  }
  fingerprints = {each.tokenizer.fingerprint for each in made.values()}
  assert len(fingerprints) == 2
  names = [contents(each.documents) for each in made.values()]
  assert [n for n, _, _ in names[0]] == [n for n, _, _ in names[1]]


def test_filters_that_leave_nothing_are_named(texts, tmp_path):
  config = config_of(texts, filters={'min_tokens': 10**6})
  with pytest.raises(ConfigError, match='a length of 1000000 to any tokens'):
    prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  config = config_of(texts, heldout_frac=1e-9)
  with pytest.raises(ConfigError, match=r'empty corpus: .* 0 held-out'):
    prepare_at_scale(config, tmp_path / 'd', **PREPARE)


def test_sources_of_nothing_are_an_empty_corpus(texts, tmp_path):
  (tmp_path / 'nothing.jsonl').touch()
  source = {'kind': 'jsonl', 'max_chars': 10**6}
  source['path'] = str(tmp_path / 'nothing.jsonl')
  config = config_of(texts, sources={'records': source})
  for make in (prepare_corpus, prepare_at_scale):
    with pytest.raises(ConfigError, match='empty corpus: 0 training and 0 '):
      make(config, tmp_path / 'c', seed=0)


def test_a_run_takes_a_corpus_that_was_prepared(texts, prepared, tmp_path):
  directory, corpus = prepared
  config = config_of(texts, prepared=str(directory))
  taken = prepare_corpus(config, tmp_path / 'c', seed=7)
  assert taken.documents.fingerprint == corpus.documents.fingerprint
  assert not (tmp_path / 'c').exists()
  other = config_of(texts, prepared=str(directory), vocab_size=330)
  with pytest.raises(ConfigError, match=r'vocab_size is 320 there, 330 here'):
    prepare_corpus(other, tmp_path / 'c', seed=0)
  sources = dataclasses.asdict(config)['sources']
  sources['files']['max_chars'] += 1
  other = config_of(texts, prepared=str(directory), sources=sources)
  with pytest.raises(ConfigError, match=r': corpus\.sources\.files\.max_chars'):
    prepare_corpus(other, tmp_path / 'c', seed=0)
  nowhere = config_of(texts, prepared=str(tmp_path / 'x'))
  with pytest.raises(ConfigError, match=r'corpus\.prepared=.*x: no such dir'):
    prepare_corpus(nowhere, tmp_path / 'c', seed=0)


def test_a_prepared_corpus_is_opened_and_others_are_refused(texts, prepared):
  directory, corpus = prepared
  runs = Stopper('', 0)
  again = prepare_at_scale(config_of(texts), directory, run=runs, **PREPARE)
  assert runs.steps == []
  assert again.documents.fingerprint == corpus.documents.fingerprint
  with pytest.raises(ConfigError, match='other corpus settings'):
    prepare_at_scale(config_of(texts, heldout_frac=0.4), directory, **PREPARE)
  assert open_corpus(directory).tokenizer is not None
