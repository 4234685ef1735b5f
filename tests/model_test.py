"""The model: who may see whom, by gradient; dtypes, remat, initial values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longctx_jax.config import RopeConfig
from longctx_jax.model import (
  RMSNorm,
  Transformer,
  attention_path,
  model_graph,
)
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.cross_entropy import token_losses_and_predictions
from longctx_jax.ops.kernels.choice import kernel_of
from tests import small
from tests.jaxprs import equations, primitives
from tests.ops.cuda_lowering import (
  CUDNN_CALLS,
  lower_for_cuda,
  pretend_cudnn,
)
from tests.random_params import graph_and_params

T = 12
CONFIG = dataclasses.replace(
  small.stage_config().model,
  vocab_size=32,
  embed_dim=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  hidden_dim=24,
  attention_block_len=7,
)
ROPE = RopeConfig(10_000.0)
SEGMENT_IDS = jnp.array([[1] * 4 + [2] * 6 + [0] * 2])
POSITIONS = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 0]])
IDS = np.asarray(SEGMENT_IDS[0])
# [T, S], by the definition in batch.py.
SEEN = (IDS[:, None] == IDS) & (IDS[:, None] > 0) & np.tri(T, dtype=bool)
# Each token occurs once, so a row of the embedding is one token's input.
TOKENS = 3 + jnp.arange(T)[None]
BATCH = TOKENS, SEGMENT_IDS, POSITIONS


def make(**changes):
  """(graph, params) of the small model with `changes` to its config."""
  return graph_and_params(dataclasses.replace(CONFIG, **changes), ROPE)


DRAWN = dataclasses.replace(
  CONFIG,
  vocab_size=512,
  embed_dim=64,
  hidden_dim=96,
  head_dim=16,
  block_init_scale=0.25,
)


@jax.jit
def draw(key):
  """Parameters as the model itself draws them, of config DRAWN."""
  model = Transformer(DRAWN, ROPE, rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.state(model))


def hidden(
  graph, params, tokens=TOKENS, segment_ids=SEGMENT_IDS, positions=POSITIONS
):
  run = jax.jit(lambda p: nnx.merge(graph, p)(tokens, segment_ids, positions))
  return np.asarray(run(params))


@functools.cache
def loss_and_grads(**changes):
  graph, params = make(**changes)

  def loss(params):
    x = nnx.merge(graph, params)(*BATCH)
    return jnp.sum(jnp.sin(3 * x.astype(jnp.float32)))

  return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(got, expected, rel):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert np.linalg.norm(a - b) <= rel * np.linalg.norm(b)


@pytest.mark.parametrize('attention', ['dense', 'blockwise'])
def test_a_loss_depends_on_its_own_documents_past_and_on_nothing_else(
  attention,
):
  """By gradient: d loss[t] / d input[s] is 0 exactly where s is out of sight.

  The converse holds too (whatever may be seen has a gradient), so a model that
  sees nothing at all does not pass.
  """
  graph, params = make(attention=attention)

  def token_losses(embedding):
    model = nnx.merge(graph, {**params, 'embedding': embedding})
    x = model(*BATCH)
    return token_losses_and_predictions(
      x, model.unembedding_matrix(), jnp.ones_like(TOKENS)
    )[0][0]

  jacobian = jax.jit(jax.jacrev(token_losses))(params['embedding'])
  influence = np.abs(jacobian[:, TOKENS[0]]).max(axis=-1)  # [T, S]
  # Padding sees itself, by the residual alone.
  seen = SEEN | np.eye(T, dtype=bool)
  assert (influence[~seen] == 0).all()
  assert (influence[seen] > 0).all()


def plain_model(params):
  """[T, D] of row 0 in float64 numpy, token by token and head by head."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  H, half = CONFIG.head_dim, CONFIG.head_dim // 2

  def norm(x, scale):
    return x / np.sqrt((x**2).mean() + CONFIG.norm_eps) * scale

  def rotate(x, t):
    angle = int(POSITIONS[0, t]) * 10_000.0 ** (-2 * np.arange(half) / H)
    a, b = x[:half], x[half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])

  def attention(h, w):
    out = np.zeros((T, CONFIG.num_heads, H))
    for n in range(CONFIG.num_heads):
      g = n // (CONFIG.num_heads // CONFIG.num_kv_heads)
      q = [rotate(h[t] @ w['query'][:, n], t) for t in range(T)]
      k = [rotate(h[t] @ w['key'][:, g], t) for t in range(T)]
      for t in range(T):
        seen = [s for s in range(T) if SEEN[t, s]]
        e = np.exp([q[t] @ k[s] / np.sqrt(H) for s in seen])
        for s, weight in zip(seen, e / e.sum(), strict=True):
          out[t, n] += weight * (h[s] @ w['value'][:, g])
    return np.einsum('TNH,NHD->TD', out, w['out'])

  x = p['embedding'][np.asarray(TOKENS[0])]
  for layer in range(CONFIG.num_layers):
    w = jax.tree.map(lambda x, i=layer: x[i], p['blocks'])
    h = np.stack([norm(r, w['attention_norm']['scale']) for r in x])
    x = x + attention(h, w['attention'])
    h = np.stack([norm(r, w['mlp_norm']['scale']) for r in x])
    gate, up = h @ w['mlp']['gate'], h @ w['mlp']['up']
    x = x + (gate / (1 + np.exp(-gate)) * up) @ w['mlp']['down']
  return np.stack([norm(r, p['final_norm']['scale']) for r in x])


def test_the_model_equals_a_plain_numpy_one():
  graph, params = make()
  np.testing.assert_allclose(
    hidden(graph, params)[0], plain_model(params), rtol=1e-4, atol=1e-5
  )


def test_positions_matter_but_not_where_they_start():
  graph, params = make()
  before = hidden(graph, params)
  # Angles of a few thousand positions round to 1e-4 (see rope_test.py).
  shifted = hidden(graph, params, positions=POSITIONS + 2000)
  np.testing.assert_allclose(shifted, before, atol=2e-3)
  stretched = hidden(graph, params, positions=POSITIONS * 2)
  real = np.asarray(SEGMENT_IDS > 0) & np.asarray(POSITIONS > 0)
  assert np.abs(stretched - before).max(axis=-1)[real].min() > 0.01


def test_documents_give_the_same_alone_as_packed():
  graph, params = make()
  packed = hidden(graph, params)
  alone = hidden(
    graph,
    params,
    jnp.roll(TOKENS, -4, axis=1),
    jnp.array([[7] * 6 + [0] * 6]),
    jnp.arange(T)[None],
  )
  np.testing.assert_allclose(alone[0, :6], packed[0, 4:10], atol=1e-5)


@pytest.mark.parametrize(
  'changes',
  [
    {'scan_unroll': -1},
    {'remat': 'full'},
    {'remat': 'dots'},
    {'remat': 'attention'},
    {'remat': 'offload'},
    {'remat': 'offload', 'scan_unroll': -1},
    {'attention': 'dense'},
    {'mlp_chunk_len': 5},
    {'mlp_chunk_len': 5, 'mlp_chunk_width': 8, 'remat': 'full'},
  ],
  ids=str,
)
def test_how_it_is_computed_changes_neither_loss_nor_gradients(changes):
  expected = loss_and_grads()
  got = loss_and_grads(**changes)
  assert_trees_close(got, expected, rel=1e-5)


def test_remat_makes_again_what_it_does_not_keep():
  """Counted in the jaxpr; `dots` keeps the projections and attention."""
  counts = {}
  for remat in ('none', 'dots', 'attention', 'full', 'offload'):
    graph, params = make(remat=remat)

    def loss(params, graph=graph):
      return nnx.merge(graph, params)(*BATCH).sum()

    counted = primitives(jax.make_jaxpr(jax.grad(loss))(params))
    # SwiGLU has the only logistic; attention has the only loops, one a pass.
    counts[remat] = [
      counted[name]
      for name in ('logistic', 'while', 'dot_general', 'device_put')
    ]
  swiglus, attentions, products, moves = zip(*counts.values(), strict=True)
  assert swiglus == (1, 2, 2, 2, 2)
  assert attentions == (2, 2, 2, 3, 3)
  assert products[0] == products[1] < products[2] < products[3] == products[4]
  assert moves == (0, 0, 0, 0, 2)  # to the host and back


def test_an_mlp_in_chunks_keeps_no_hidden_of_all_tokens():
  hidden_shape = 1, T, CONFIG.hidden_dim
  found = {}
  for chunk_len in (0, 5):
    graph, params = make(mlp_chunk_len=chunk_len)

    def loss(params, graph=graph):
      return nnx.merge(graph, params)(*BATCH).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    shapes = {v.aval.shape for eqn in equations(jaxpr) for v in eqn.outvars}
    found[chunk_len] = hidden_shape in shapes
  assert found == {0: True, 5: False}


def test_tied_embeddings_are_one_parameter_used_twice():
  graph, params = make(tie_embeddings=True)
  assert 'unembedding' not in params
  model = nnx.merge(graph, params)
  np.testing.assert_array_equal(
    model.unembedding_matrix(), params['embedding'].T
  )
  untied = nnx.merge(*make())
  assert np.abs(untied.unembedding_matrix() - untied.embedding[...].T).max() > 0


def test_bfloat16_compute_keeps_float32_parameters_and_gradients():
  graph, params = make(compute_dtype='bfloat16')
  grads = jax.eval_shape(
    jax.grad(lambda p: nnx.merge(graph, p)(*BATCH).sum()), params
  )
  for tree in (params, grads):
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {'float32'}
  assert nnx.merge(graph, params).unembedding_matrix().dtype == jnp.bfloat16
  x = hidden(graph, params)
  assert x.dtype == jnp.bfloat16
  # Two layers of roundings of 2^-9 each, on states of unit size.
  assert np.abs(np.float32(x) - hidden(*make())).mean() < 0.02


def test_norms_are_float32_inside():
  norm = RMSNorm(256, 1e-6, 'float32')
  norm.scale[...] = jnp.linspace(0.5, 1.5, 256)
  x = 1 + jax.random.normal(jax.random.key(0), (1, 4, 256), jnp.bfloat16)
  exact = np.asarray(x, np.float64)
  exact /= np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-6)
  exact *= np.linspace(0.5, 1.5, 256)
  # Rounded once, to bfloat16's 8 bits.
  np.testing.assert_allclose(
    np.asarray(norm(x), np.float64), exact, rtol=2**-8 * 1.01
  )


def test_norm_gives_unit_root_mean_square_whatever_the_scale_of_x():
  norm = RMSNorm(16, 1e-6, 'float32')
  x = jax.random.normal(jax.random.key(0), (2, 3, 16))
  for size in (1e-1, 1.0, 1e4):
    square = np.mean(np.square(norm(size * x)), axis=-1)
    np.testing.assert_allclose(square, 1, rtol=1e-3)


@pytest.mark.parametrize('tied', [False, True])
def test_parameter_count_is_that_of_the_formula(tied):
  c = dataclasses.replace(CONFIG, tie_embeddings=tied)
  V, D, F, L = c.vocab_size, c.embed_dim, c.hidden_dim, c.num_layers
  N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
  attention = D * N * H + 2 * D * K * H + N * H * D
  layer = attention + 3 * D * F + 2 * D
  expected = (1 if tied else 2) * V * D + L * layer + D
  _, params = make(tie_embeddings=tied)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_initial_weights_give_outputs_of_the_size_asked_for():
  params = draw(jax.random.key(0))
  blocks = params['blocks']
  inputs_of = {
    'query': 64,
    'key': 64,
    'value': 64,
    'out': 4 * 16,
    'gate': 64,
    'up': 64,
    'down': 96,
  }
  layers = {**blocks['attention'], **blocks['mlp']}
  assert set(layers) == set(inputs_of)
  tensors = {name: (layers[name], n) for name, n in inputs_of.items()}
  tensors['embedding'] = params['embedding'], 64
  tensors['unembedding'] = params['unembedding'], 64
  for name, (kernel, num_inputs) in tensors.items():
    kernel = np.asarray(kernel)
    # The normal is cut at 3 sigma, which takes 1.4% off its deviation.
    scale = 0.25 if name in layers else 1.0
    expected = 0.9866 * scale * num_inputs**-0.5
    # A sample's deviation is known to 1 / sqrt(2 n); 5 of those.
    assert kernel.std() == pytest.approx(
      expected, rel=5 / (2 * kernel.size) ** 0.5
    ), name
    assert abs(kernel.mean()) < 5 * expected / kernel.size**0.5, name
    assert np.abs(kernel).max() <= 3.0001 * scale * num_inputs**-0.5, name
  for norm in (blocks['attention_norm'], blocks['mlp_norm']):
    assert (np.asarray(norm['scale']) == 1).all()


def test_no_two_tensors_or_layers_start_alike_and_seeds_repeat():
  params, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  layers = {**params['blocks']['attention'], **params['blocks']['mlp']}
  for name, kernel in layers.items():
    assert np.abs(kernel[0] - kernel[1]).max() > 0, name
  assert np.abs(layers['gate'] - layers['up']).max() > 0
  assert np.abs(layers['key'] - layers['value']).max() > 0
  assert np.abs(params['embedding'] - other['embedding']).max() > 0


@pytest.mark.parametrize(
  ('T', 'block_len', 'kernel'),
  [
    (8192, 512, 'pallas'),
    # Chunks of zigzag are shorter than the blocks, and blocks no longer.
    (1024, 128, 'xla'),
  ],
)
def test_a_tpu_takes_its_kernel_where_blocks_fit(
  monkeypatch, T, block_len, kernel
):
  monkeypatch.setattr(ContextParallel, 'platform', 'tpu')
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('context',))
  parallel = ContextParallel(mesh, 'ring', 'zigzag')
  config = dataclasses.replace(CONFIG, attention_block_len=block_len)
  path = attention_path(config, parallel, T)
  assert path.keywords['kernel'] is kernel_of(kernel)


def test_a_gpu_trains_by_cudnn_through_remat_and_scan(monkeypatch):
  pretend_cudnn(monkeypatch)
  monkeypatch.setattr(ContextParallel, 'platform', 'gpu')
  monkeypatch.setattr(ContextParallel, 'compute_capability', (8, 0))
  config = dataclasses.replace(
    CONFIG, head_dim=8, compute_dtype='bfloat16', remat='full'
  )
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  graph = model_graph(config, ROPE, ContextParallel(mesh))
  _, params = graph_and_params(config, ROPE)

  def loss(params):
    return nnx.merge(graph, params)(*BATCH).astype(jnp.float32).sum()

  lowered = lower_for_cuda(jax.jit(jax.grad(loss)), params)
  assert lowered.custom_calls == set(CUDNN_CALLS)
  assert 'case' in lowered.operations
