"""`longctx evaluate` on a tiny model, from its folder to its page."""

import json

import jax
import pytest

from longctx_jax.config import MeshConfig
from longctx_jax.sharding import make_mesh
from longctx_jax.suites.evaluate import Evaluation, evaluate_model
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
  # A model of random weights finds nothing; it knows no word of English.
  assert results['suites']['passkey']['score'] == 0
  assert results['suites']['perplexity']['loss']['loss'] > 4
  assert 'passkey: 0%' in (out / 'evaluation.html').read_text()
