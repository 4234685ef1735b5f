"""Predictor: a row's losses do not depend on its neighbours or its padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longctx_jax import sharding
from longctx_jax.config import MeshConfig
from longctx_jax.evals import predict
from longctx_jax.evals.predict import Predictor, split_of_rows
from longctx_jax.model import Transformer, model_graph
from tests import small

# float32, sums in another order
ATOL = 2e-5
LENGTHS = (2, 17, 64, 33, 1)
CONFIG = small.stage_config(evals={'batch_tokens': 128})
VOCAB_SIZE = CONFIG.model.vocab_size


@pytest.fixture(scope='module')
def params():
  @jax.jit
  def init():
    model = Transformer(CONFIG.model, CONFIG.rope, rngs=nnx.Rngs(0))
    return nnx.to_pure_dict(nnx.state(model))

  # On the host, for meshes of any devices.
  return jax.tree.map(np.asarray, init())


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return [rng.integers(8, VOCAB_SIZE, n).astype(np.int32) for n in LENGTHS]


def mesh_of(num_devices, **sizes):
  return sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:num_devices])


def split_config(layout):
  """With blocks no longer than the chunks of rows of 64."""
  return dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, attention_block_len=4),
    mesh=dataclasses.replace(CONFIG.mesh, context_layout=layout),
  )


@jax.jit
def dense_logits(params, tokens):
  """Logits [T, V] of one row by itself: dense attention, nothing in chunks."""
  dense = dataclasses.replace(CONFIG.model, attention='dense')
  model = nnx.merge(model_graph(dense, CONFIG.rope), params)
  positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
  x = model(tokens[None], jnp.ones_like(tokens)[None], positions)
  return x[0] @ model.unembedding_matrix()


def plain(params, row):
  logits = np.asarray(dense_logits(params, row[:-1]))
  log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
  return -log_probs[np.arange(len(row) - 1), row[1:]], logits.argmax(axis=-1)


def check_equal(got, expected):
  for (losses, predictions), (losses_, predictions_) in zip(
    got, expected, strict=True
  ):
    np.testing.assert_allclose(losses, losses_, rtol=0, atol=ATOL)
    assert predictions.tolist() == predictions_.tolist()


@pytest.fixture(scope='module')
def predictor(params):
  # Batches of two rows of up to 64 tokens.
  return Predictor.of_stage(CONFIG, params, mesh_of(1))


def test_losses_and_predictions_are_those_of_a_plain_dense_model(
  params, predictor, rows
):
  rows = [row for row in rows if len(row) > 1]
  got = list(predictor.rows(rows))
  assert [len(losses) for losses, _ in got] == [len(row) - 1 for row in rows]
  check_equal(got, [plain(params, row) for row in rows])


def test_rows_together_alone_and_in_any_order_are_the_same(predictor, rows):
  together = list(predictor.rows(rows))
  check_equal(reversed(list(predictor.rows(rows[::-1]))), together)
  alone = [next(predictor.rows([row])) for row in rows]
  check_equal(alone, together)
  assert len(together[-1][0]) == 0


@pytest.mark.parametrize(
  ('layout', 'data', 'context'),
  # On 5 shards, rows of 64 are padded to 70 for the 10 chunks of zigzag.
  [
    ('zigzag', 2, 4),
    pytest.param('contiguous', 2, 4, marks=pytest.mark.slow),
    pytest.param('zigzag', 1, 5, marks=pytest.mark.slow),
  ],
)
def test_rows_and_context_spread_over_devices_are_the_same(
  params, predictor, rows, layout, data, context
):
  config = split_config(layout)
  mesh = mesh_of(data * context, data=data, fsdp=1, context=context)
  assert (
    split_of_rows(
      config.model, config.mesh, mesh, 64 + -64 % (2 * context)
    ).layout
    == layout
  )
  spread = Predictor.of_stage(CONFIG, params, mesh)
  check_equal(spread.rows(rows), predictor.rows(rows))


def test_rows_whose_chunks_are_shorter_than_a_block_stay_in_order():
  config, mesh = split_config('zigzag'), mesh_of(4, fsdp=1, context=4)
  layouts = [
    split_of_rows(config.model, config.mesh, mesh, T).layout
    for T in (16, 32, 64)
  ]
  assert layouts == ['contiguous', 'zigzag', 'zigzag']


def count_batches(monkeypatch):
  """The sizes of batches, as they are asked for."""
  padded, pad = [], predict._pad_rows
  monkeypatch.setattr(
    predict, '_pad_rows', lambda *args: padded.append(args[1]) or pad(*args)
  )
  return padded


@pytest.mark.parametrize(
  ('num_rows', 'batches'), [(1, [1]), (3, [4]), (4, [4]), (9, [8, 8])]
)
def test_few_rows_are_not_padded_to_a_whole_batch(
  params, monkeypatch, num_rows, batches
):
  # Batches of eight rows of 16 tokens, if there are as many.
  padded = count_batches(monkeypatch)
  rows = [np.arange(16, dtype=np.int32)] * num_rows
  found = Predictor.of_stage(CONFIG, params, mesh_of(1)).rows(rows)
  assert len(list(found)) == num_rows
  assert padded == batches


# Batches of two rows of up to 64 tokens, or of four of up to 32.
@pytest.mark.parametrize(('T', 'size'), [(64, 2), (32, 4)])
@pytest.mark.parametrize('start', range(8))
def test_rows_from_a_start_on_are_the_same_to_the_bit(
  predictor, monkeypatch, T, size, start
):
  rng = np.random.default_rng(1)
  rows = [rng.integers(8, VOCAB_SIZE, T).astype(np.int32) for _ in range(7)]
  whole = list(predictor.rows(rows))
  padded = count_batches(monkeypatch)
  got = list(predictor.rows(rows, start=start))
  assert len(got) == 7 - start
  for found, expected in zip(got, whole[start:], strict=True):
    for x, y in zip(found, expected, strict=True):
      assert x.tobytes() == y.tobytes()
  # Nothing of a batch that lies before it.
  assert padded == [size] * len(range(start // size * size, 7, size))
