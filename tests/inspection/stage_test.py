"""`longctx inspect`: which stage, whose corpus, and what it leaves alone."""

import io
import json
import re
import sys

import pytest

from longctx_jax import __main__ as cli
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.inspection.stage import inspect_stage
from longctx_jax.workdir import claim_workdir
from tests import small
from tests.architecture_test import ROOT

STAGES = (small.stage_config(), small.stage_config(name='next', seed=1))


@pytest.fixture
def workdir(corpus):
  """The directory whose corpus/ the session's corpus is, under that name."""
  directory = corpus.documents.directory.parents[1]
  link = directory / 'corpus'
  if not link.exists():
    link.symlink_to(corpus.documents.directory.parent)
  yield directory
  for name in ('config.json', 'inspect.html'):
    (directory / name).unlink(missing_ok=True)


def test_the_stage_is_the_one_named_or_the_first(workdir):
  for name, shown in (('', 'small'), ('small', 'small'), ('next', 'next')):
    text = inspect_stage(STAGES, workdir, name=name, step=2, text=True)
    assert text.startswith(f'stage {shown}, step 2 of 4: ')


def test_a_stage_that_is_not_there_is_named_with_those_that_are(tmp_path):
  with pytest.raises(ConfigError, match=r'--stage=cpi: .* only small'):
    inspect_stage(STAGES, tmp_path, name='cpi')
  assert not list(tmp_path.iterdir())


def test_a_step_beyond_the_run_is_refused_before_a_corpus_is_made(tmp_path):
  with pytest.raises(
    ConfigError, match='--step=4: stage small has steps 0 to 3'
  ):
    inspect_stage(STAGES, tmp_path, step=4)
  assert not list(tmp_path.iterdir())


def test_a_page_is_written_and_nothing_claimed(workdir):
  path = inspect_stage(STAGES, workdir, num_rows=1, num_steps=1)
  assert path == str(workdir / 'inspect.html')
  assert (
    '<title>small, step 0</title>' in (workdir / 'inspect.html').read_text()
  )
  assert not (workdir / 'config.json').exists()


def test_another_run_in_the_workdir_is_told_of_and_left_alone(workdir, caplog):
  other = {'stages': [{'name': 'other'}]}
  claim_workdir(workdir, other)
  inspect_stage(STAGES, workdir, text=True)
  assert 'may not be the rows of that run' in caplog.text
  assert json.loads((workdir / 'config.json').read_text()) == other


def test_no_corpus_and_no_way_to_make_one_is_a_clear_error(tmp_path):
  missing = {'kind': 'text_files', 'max_chars': 100, 'path': '/no/such/place'}
  corpus = {'sources': {'mine': missing}}
  with pytest.raises((ConfigError, OSError), match='/no/such/place'):
    inspect_stage((small.stage_config(corpus=corpus),), tmp_path)
  assert not list(tmp_path.glob('corpus*'))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  """run(arguments) -> stdout of `longctx arguments`, on a small corpus."""
  monkeypatch.chdir(ROOT)

  def run(*argv):
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)
    sources = 'config.corpus.sources'
    shrunk = [
      *(
        f'--{sources}.{name}.kind=stdlib' for name in ('books', 'code', 'docs')
      ),
      *(
        f'--{sources}.{name}.max_chars=60000'
        for name in ('books', 'code', 'docs', 'stdlib')
      ),
      *(
        f'--config.corpus.conversations.{kind}=50'
        for kind in ('define', 'extract', 'needle', 'write_function')
      ),
      *(
        f'--config.{section}.vocab_size=768' for section in ('corpus', 'model')
      ),
    ]
    monkeypatch.setattr(sys, 'argv', ['longctx', *argv, *shrunk])
    cli.main()
    return capsys.readouterr().out

  return run


def test_the_example_of_the_help_runs(run, tmp_path, monkeypatch):
  words = re.search(r'longctx (inspect --[^\n]*)', cli.USAGE)[1].split()
  argv = [w.replace('runs/tiny', str(tmp_path / 'run')) for w in words]
  page = tmp_path / 'run' / 'inspect.html'
  assert run(*argv) == f'{page}\n'
  assert '<title>cip, step 0</title>' in page.read_text()
  # The corpus is there now, and a file of one stage reads it too.
  argv = [w.replace('recipe.py', 'pretrain.py') for w in argv]
  argv.remove('--stage=cip')
  text = run(*argv, '--text', '--step=3', '--rows=1', '--steps=2')
  assert text.startswith('stage pretrain, step 3 of ')
  assert 'what steps 3 to 4 take' in text
  assert re.search(r'^1 of the \d+ rows of step 3;', text, re.MULTILINE)
  ascii_only = io.TextIOWrapper(io.BytesIO(), 'ascii')
  monkeypatch.setattr(sys, 'stdout', ascii_only)
  run(*argv, '--text')
  ascii_only.flush()
  printed = ascii_only.buffer.getvalue()
  assert b'? hold what is trained on' in printed
