"""Large corpora: whatever interrupts a run, the next one ends in the same.

And what was there before it: a corpus, part of one, another run.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import prepare, prepare_pipeline, prepare_steps
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.prepare_pipeline import prepare_at_scale, run_here
from longctx_jax.data.prepare_tasks import list_tasks
from longctx_jax.data.tokenizer import TokenizerError
from tests.architecture_test import ROOT
from tests.data.large_corpus import PREPARE, config_of, files_of, write_texts
from tests.data.small_tokenizers import write_folder


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def prepared(texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  return directory, prepare_at_scale(config_of(texts), directory, **PREPARE)


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


def test_a_mended_file_of_conversations_is_read_and_documents_are_kept(
  texts, tmp_path
):
  path = tmp_path / 'chats.jsonl'
  fields = {'path': str(path), 'on_problem': 'stop'}
  config = config_of(texts, conversation_files={'mine': fields})
  good = '{"data": ["Hi", "Hello"]}\n'
  # One line is found out when all documents are tokenised, the other is well.
  for first, error in ((f'{good}Hi\n', ConfigError), (good, KeyboardInterrupt)):
    path.write_text(first)
    directory = tmp_path / error.__name__
    with contextlib.ExitStack() as stack:
      if error is KeyboardInterrupt:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(prepare_pipeline, 'corpus_statistics', interrupt)
      stack.enter_context(pytest.raises(error))
      prepare_at_scale(config, directory, **PREPARE)
    path.write_text(good * 3)
    runs = Stopper('', 0)
    made = prepare_at_scale(config, directory, run=runs, **PREPARE)
    assert runs.steps == []
    assert made.conversations.accounts['mine'].documents['kept'] == 3
  prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  assert files_of(directory) == files_of(tmp_path / 'c')


def interrupt(*_, **__):
  raise KeyboardInterrupt


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


def test_a_prepared_corpus_is_opened_and_others_are_refused(texts, prepared):
  directory, corpus = prepared
  runs = Stopper('', 0)
  again = prepare_at_scale(config_of(texts), directory, run=runs, **PREPARE)
  assert runs.steps == []
  assert again.documents.fingerprint == corpus.documents.fingerprint
  with pytest.raises(ConfigError, match='other corpus settings'):
    prepare_at_scale(config_of(texts, heldout_frac=0.4), directory, **PREPARE)
  assert open_corpus(directory).tokenizer is not None


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


@pytest.mark.parametrize('removed', [1, 5])
def test_a_run_killed_while_it_tidies_up_ends_in_the_same_bytes(
  texts, prepared, tmp_path, monkeypatch, removed
):
  unlink, left = os.unlink, iter([True] * removed)

  # As `shutil.rmtree` calls it; what follows the last one is never reached.
  def unlink_or_die(path, *, dir_fd=None):
    if dir_fd is not None and not next(left, False):
      raise KeyboardInterrupt
    unlink(path, dir_fd=dir_fd)

  directory = tmp_path / 'c'
  with monkeypatch.context() as patched:
    patched.setattr(os, 'unlink', unlink_or_die)
    with pytest.raises(KeyboardInterrupt):
      prepare_at_scale(config_of(texts), directory, **PREPARE)
  prepare_at_scale(config_of(texts), directory, **PREPARE)
  assert files_of(directory) == files_of(prepared[0])
  assert {p.name for p in tmp_path.iterdir()} <= {'c', 'c.lock'}


@pytest.mark.parametrize('removed', [False, True])
def test_a_run_killed_before_its_corpus_has_a_name_goes_on(
  texts, prepared, tmp_path, monkeypatch, removed
):
  config, directory = config_of(texts), tmp_path / 'c'

  def die(*paths):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(prepare_pipeline, 'publish', die)
    with pytest.raises(KeyboardInterrupt):
      prepare_at_scale(config, directory, **PREPARE)
  assert not directory.exists()
  if removed:  # by the user: what was put aside belongs to nothing now
    shutil.rmtree(tmp_path / 'c.partial')
  runs = Stopper('', 0)
  prepare_at_scale(config, directory, run=runs, **PREPARE)
  assert bool(runs.steps) == removed
  assert files_of(directory) == files_of(prepared[0])
  assert {p.name for p in tmp_path.iterdir()} <= {'c', 'c.lock'}


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
