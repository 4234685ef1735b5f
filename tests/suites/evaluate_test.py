"""`longctx evaluate` on a tiny model, from its folder to its page."""

import json
import types

import jax
import pytest

from longctx_jax.config import ConfigError, MeshConfig
from longctx_jax.evals import predict
from longctx_jax.sharding import make_mesh
from longctx_jax.suites.evaluate import Evaluation, evaluate_model, make_suite
from longctx_jax.suites.suite import Grid
from longctx_jax.weights.loaded_model import load_model

SPLIT = MeshConfig(fsdp=1, context=1)


@pytest.mark.slow
def test_all_suites_run_on_a_model_of_no_words(folder, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('It was late. A man went home by the river. ' * 200)
  evaluation = Evaluation(
    ('needle', 'passkey', 'lost_in_the_middle', 'perplexity'),
    Grid((900,), num_depths=2, samples=1, seed=0),
    text=str(text),
  )
  loaded, mesh = load_model(str(folder)), make_mesh(SPLIT, jax.devices()[:1])
  out = tmp_path / 'out'
  results = evaluate_model(loaded, evaluation, out, mesh, SPLIT)
  assert json.loads((out / 'results.json').read_text()) == results
  assert set(results['suites']) == set(evaluation.suites)
  for name in ('needle', 'passkey', 'lost_in_the_middle'):
    assert results['suites'][name]['num'] == 2
    assert (out / f'{name}.png').exists()
    assert len((out / f'{name}.jsonl').read_text().splitlines()) == 3
  # One document whole, and its targets after 256, 512 and 644 tokens.
  assert len((out / 'perplexity.jsonl').read_text().splitlines()) == 5
  # A model of random weights finds nothing; it knows no word of English.
  assert results['suites']['passkey']['score'] == 0
  assert results['suites']['perplexity']['loss']['loss'] > 4
  assert 'passkey: 0%' in (out / 'evaluation.html').read_text()


@pytest.fixture
def measure(folder, tmp_path):
  """Measures the perplexity of 60 tokens: the suite that takes seconds."""
  text = tmp_path / 'text.txt'
  text.write_text('It was late. A man went home by the river. ' * 20)

  def run(seed=0, length=60, suites=('perplexity',), rope=None, **how):
    grid = Grid((length,), num_depths=1, samples=1, seed=seed)
    evaluation = Evaluation(suites, grid, **{'text': str(text), **how})
    loaded = load_model(str(folder), rope=rope)
    mesh = make_mesh(SPLIT, jax.devices()[:1])
    return evaluate_model(loaded, evaluation, tmp_path / 'out', mesh, SPLIT)

  return run


NTK = {'scaling': 'ntk', 'factor': 4.0}


def test_one_place_holds_results_of_the_same_settings(measure, tmp_path):
  results = measure()
  settings = results['suites']['perplexity']['settings']
  assert settings['rope'] == 'base 10000.0'
  assert settings['weights'].startswith('files ')
  # Another suite does not go beside it with another RoPE, nor the same.
  path = tmp_path / 'out' / 'results.json'
  before = path.read_bytes()
  for suites in (('perplexity',), ('needle',)):
    with pytest.raises(ConfigError) as error:
      measure(suites=suites, rope=NTK)
    assert str(error.value) == (
      f"{path} holds results with other settings (rope is 'base 10000.0' there,"
      " 'base 10000.0, scaling ntk, factor 4.0' here): give another --out"
    )
  with pytest.raises(ConfigError, match='seed is 0 there, 1 here'):
    measure(seed=1)
  with pytest.raises(ConfigError, match=r"text is '?[^;]*/text\.txt' there"):
    measure(text=str(tmp_path))
  assert path.read_bytes() == before
  # Where there are no results yet, the file of losses says what it is of.
  path.unlink()
  with pytest.raises(ConfigError, match=r'perplexity\.jsonl .*seed is 0 there'):
    measure(seed=1)
  assert measure(length=50)['suites']['perplexity']['length'] == 50


@pytest.mark.parametrize(
  ('kept', 'batches'),
  # Five documents whole in batches of two, and their targets after 30 tokens;
  # the settings are a line too.
  [(1, 6), (2, 6), (3, 5), (4, 5), (6, 3), (9, 2), (10, 1), (11, 0)],
)
def test_losses_go_on_where_a_kill_cut_them_to_the_same_results(
  measure, tmp_path, monkeypatch, kept, batches
):
  texts = tmp_path / 'texts'
  texts.mkdir()
  for i in range(5):
    (texts / f'{i}.txt').write_text(f'Text {i}: it was late {i * i}. ' * 20)
  asked, pad = [], predict._pad_rows
  monkeypatch.setattr(
    predict, '_pad_rows', lambda *args: asked.append(args) or pad(*args)
  )
  how = {'text': str(texts), 'batch_tokens': 128}
  measure(**how)
  assert len(asked) == 6
  out = tmp_path / 'out'
  before = {path: path.read_bytes() for path in out.glob('*.json*')}
  assert len(before) == 2
  (out / 'results.json').unlink()
  path = out / 'perplexity.jsonl'
  lines = before[path].splitlines(keepends=True)
  torn = b''.join(lines[kept:])[:20]
  path.write_bytes(b''.join(lines[:kept]) + torn)
  asked.clear()
  measure(**how)
  assert {path: path.read_bytes() for path in before} == before
  assert len(asked) == batches


@pytest.mark.parametrize('text', ['{"suites": {"nee', '[]', '{"suites": [1]}'])
def test_damaged_results_are_named(measure, tmp_path, text):
  path = tmp_path / 'out' / 'results.json'
  path.parent.mkdir()
  path.write_text(text)
  with pytest.raises(ConfigError, match=r'results\.json is damaged: remove it'):
    measure()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_needles': 0}, '--num_needles=0 must be at least 1'),
    ({'num_targets': 0}, '--num_targets=0 must be at least 1'),
    ({'num_documents': 0}, '--num_documents=0 must be at least 1'),
    ({'batch_tokens': 0}, '--batch_tokens=0 must be at least 1'),
    ({'seed': -1}, '--seed=-1 must be at least 0'),
    ({'length': 0}, '--lengths=0: give numbers of tokens'),
    ({'length': 1}, '--lengths=1: the suite perplexity needs 2 tokens'),
  ],
)
def test_numbers_that_make_no_sense_are_refused(measure, changes, message):
  with pytest.raises(ConfigError, match=message):
    measure(**changes)


def test_a_length_that_is_given_twice_is_refused():
  with pytest.raises(ConfigError, match='--lengths=64,9,64: give each length'):
    Grid((64, 9, 64), num_depths=1, samples=1, seed=0)


def test_a_file_is_no_directory_for_results(measure, tmp_path):
  (tmp_path / 'out').write_text('mine')
  with pytest.raises(ConfigError, match=r'--out=.*out is a file: give a dir'):
    measure()
  assert (tmp_path / 'out').read_text() == 'mine'


@pytest.mark.parametrize('name', ['kv_retrieval', 'lost_in_the_middle'])
def test_official_prompts_are_cut_to_what_the_model_is_made_for(folder, name):
  loaded = load_model(str(folder))
  evaluation = Evaluation((name,), Grid((9,), 1, 1, 0), data='x.jsonl')
  assert make_suite(name, evaluation, loaded, None).max_len == loaded.max_len


def test_weights_are_not_read_before_the_examples_are_good(folder, tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"context": 5}')
  # Of these tensors nothing can be read.
  nothing = types.SimpleNamespace(where=str(folder))
  loaded = load_model(str(folder))._replace(tensors=nothing)
  evaluation = Evaluation(('passkey',), Grid((9,), 1, 1, 0), data=str(path))
  mesh, out = make_mesh(SPLIT, jax.devices()[:1]), tmp_path / 'out'
  with pytest.raises(ConfigError, match="line 1: the field 'context'"):
    evaluate_model(loaded, evaluation, out, mesh, SPLIT)
  assert not out.exists()
