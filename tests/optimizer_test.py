"""Schedules against their formulas; what Muon, Adam and decay each touch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from longctx_jax.config import OptimizerConfig, RopeConfig
from longctx_jax.optimizer import (
  make_optimizer,
  make_schedule,
  reset_schedule,
)
from longctx_jax.sharding import leaf_name
from tests import small
from tests.random_params import graph_and_params

STEPS, WARMUP, PEAK, RATIO = 50, 8, 3e-3, 0.1
CONFIG = OptimizerConfig(
  name='adamw',
  peak_lr=PEAK,
  schedule='constant',
  warmup_steps=0,
  min_lr_ratio=RATIO,
  weight_decay=0.0,
  b1=0.9,
  b2=0.95,
  clip_norm=1e9,
  adam_peak_lr=7e-4,
)
# Matrix view of a layer kernel [L, ...]: how many axes are inputs.
INPUT_AXES = {
  'query': 1,
  'key': 1,
  'value': 1,
  'out': 2,
  'gate': 1,
  'up': 1,
  'down': 1,
}
BIASES = ('query_bias', 'key_bias', 'value_bias')
NOT_DECAYED = ('scale', *BIASES)


@pytest.fixture(scope='module')
def params():
  config = dataclasses.replace(
    small.stage_config().model, vocab_size=24, qkv_bias=True
  )
  return graph_and_params(config, RopeConfig(10_000.0))[1]


def named_leaves(tree):
  return [
    (leaf_name(path), np.asarray(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def as_matrices(name, kernel):
  """[L, in, out]: what multiplies a vector from the left, layer by layer."""
  axes = kernel.shape[1 : 1 + INPUT_AXES[name]]
  return kernel.reshape(kernel.shape[0], math.prod(axes), -1)


def gradients(params, seed=0):
  """Of singular values from 0.3 to 1 in each layer's matrix; else normal."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    name = leaf_name(path)
    if name not in INPUT_AXES:
      return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    matrices = as_matrices(name, np.asarray(leaf))
    left, _, right = np.linalg.svd(
      rng.normal(size=matrices.shape), full_matrices=False
    )
    values = np.linspace(1.0, 0.3, left.shape[-1])
    return jnp.asarray((left * values @ right).reshape(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(one, params)


def run_steps(config, params, grads, steps=1, opt_state=None):
  optimizer = make_optimizer(config, STEPS)
  opt_state = optimizer.init(params) if opt_state is None else opt_state
  update = jax.jit(optimizer.update)
  for _ in range(steps):
    updates, opt_state = update(grads, opt_state, params)
  return updates, opt_state


def by_formula(kind, step, warmup):
  """The rate at a step, as make_schedule's docstring and ProLong have it."""
  if step < warmup:
    return PEAK * (step + 1) / warmup
  p = (step - warmup) / (STEPS - warmup)
  return (
    PEAK
    * {
      'cosine': RATIO + (1 - RATIO) * 0.5 * (1 + math.cos(math.pi * p)),
      'linear': 1 - (1 - RATIO) * p,
      'constant': 1.0,
    }[kind]
  )


@pytest.mark.parametrize('warmup', [0, 1, WARMUP])
@pytest.mark.parametrize('kind', ['cosine', 'linear', 'constant'])
def test_schedule_equals_its_formula_at_every_step(kind, warmup):
  config = dataclasses.replace(CONFIG, schedule=kind, warmup_steps=warmup)
  schedule = jax.jit(make_schedule(config, PEAK, STEPS))
  rates = np.array([schedule(step) for step in range(STEPS)])
  expected = [by_formula(kind, step, warmup) for step in range(STEPS)]
  np.testing.assert_allclose(rates, expected, rtol=1e-5)
  assert rates[0] > 0  # no step is lost on a rate of 0
  assert rates.max() == pytest.approx(PEAK, rel=1e-6)
  # Past the end it stays at the floor.
  floor = PEAK if kind == 'constant' else PEAK * RATIO
  assert schedule(STEPS + 9) == pytest.approx(floor, rel=1e-5)


def test_a_stage_shorter_than_its_warmup_is_all_warmup():
  config = dataclasses.replace(CONFIG, schedule='cosine', warmup_steps=100)
  schedule = make_schedule(config, PEAK, 10)
  np.testing.assert_allclose(
    [schedule(s) for s in range(10)], PEAK * np.arange(1, 11) / 100, rtol=1e-5
  )


def test_muon_orthogonalises_every_layer_matrix(params):
  config = dataclasses.replace(CONFIG, name='muon')
  updates, _ = run_steps(config, params, gradients(params))
  seen = set()
  for name, update in named_leaves(updates):
    if name not in INPUT_AXES:
      continue
    seen.add(name)
    matrices = as_matrices(name, update)
    # consistent_rms: every entry is about 0.2 * lr, whatever the shape.
    scale = PEAK * 0.2 * math.sqrt(max(matrices.shape[1:]))
    values = np.linalg.svd(matrices / scale, compute_uv=False)
    # Five Newton-Schulz steps of these coefficients end in 0.68..1.21.
    assert values.min() > 0.65, name
    assert values.max() < 1.25, name
  assert seen == set(INPUT_AXES)


def test_under_muon_adam_takes_embeddings_and_norms_at_its_own_rate(params):
  config = dataclasses.replace(CONFIG, name='muon')
  grads = gradients(params)
  updates, _ = run_steps(config, params, grads)
  seen = []
  for (name, update), (_, grad) in zip(
    named_leaves(updates), named_leaves(grads), strict=True
  ):
    if name not in INPUT_AXES:
      seen.append(name)
      # Adam's first step: the rate against the sign, times a constant that
      # Nesterov's look-ahead makes b1 / (1 + b1) + 1.
      size = np.abs(update)
      np.testing.assert_allclose(
        size, config.adam_peak_lr * (0.9 / 1.9 + 1), rtol=1e-3
      )
      assert (np.sign(update) == -np.sign(grad)).all()
  assert sorted(seen) == sorted(
    ['embedding', 'unembedding', *['scale'] * 3, *BIASES]
  )


def test_adamw_behind_a_clip_equals_its_formula(params):
  config = dataclasses.replace(CONFIG, weight_decay=0.1, clip_norm=0.5)
  optimizer = make_optimizer(config, STEPS)
  state, clipped = optimizer.init(params), []
  for seed in (0, 1):
    grads = gradients(params, seed)
    norm = float(optax.tree.norm(grads))
    assert norm > 0.5
    clipped.append([(n, g * 0.5 / norm) for n, g in named_leaves(grads)])
    updates, state = jax.jit(optimizer.update)(grads, state, params)
  for (name, update), (_, p), (_, g0), (_, g1) in zip(
    named_leaves(updates), named_leaves(params), *clipped, strict=True
  ):
    m = 0.1 * (0.9 * g0 + g1) / (1 - 0.9**2)
    v = 0.05 * (0.95 * g0**2 + g1**2) / (1 - 0.95**2)
    decay = 0.0 if name in NOT_DECAYED else 0.1 * p
    expected = -PEAK * (m / (np.sqrt(v) + 1e-8) + decay)
    np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_weight_decay_shrinks_matrices_and_leaves_scales_and_biases_alone(
  name, params
):
  config = dataclasses.replace(CONFIG, name=name, weight_decay=0.1)
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = run_steps(config, params, grads)
  for (leaf, update), (_, p) in zip(
    named_leaves(updates), named_leaves(params), strict=True
  ):
    decayed = leaf in INPUT_AXES or (
      name == 'adamw' and leaf not in NOT_DECAYED
    )
    np.testing.assert_allclose(
      update, -PEAK * 0.1 * p if decayed else 0 * p, rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_reset_schedule_starts_the_rate_again_and_keeps_the_moments(
  name, params
):
  config = dataclasses.replace(
    CONFIG, name=name, schedule='linear', warmup_steps=4
  )
  grads = gradients(params)
  _, state = run_steps(config, params, grads, steps=3)
  reset = reset_schedule(state)
  is_schedule = lambda n: isinstance(n, optax.ScaleByScheduleState)  # noqa: E731
  schedules = 0
  for before, after in zip(
    jax.tree.leaves(state, is_leaf=is_schedule),
    jax.tree.leaves(reset, is_leaf=is_schedule),
    strict=True,
  ):
    if is_schedule(before):
      schedules += 1
      assert (int(before.count), int(after.count)) == (3, 0)
    else:
      np.testing.assert_array_equal(before, after)
  assert schedules == (2 if name == 'muon' else 1)
  # The same gradient again: the moments are in the update, the rate is the
  # first step's, a quarter of what step 4 would have.
  going_on, _ = run_steps(config, params, grads, opt_state=state)
  starting, _ = run_steps(config, params, grads, opt_state=reset)
  for (_, late), (_, early) in zip(
    named_leaves(going_on), named_leaves(starting), strict=True
  ):
    np.testing.assert_allclose(early, late / 4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_first_moments_are_stored_in_the_dtype_asked_for(name, params):
  grads = gradients(params)
  updates = {}
  for dtype in ('float32', 'bfloat16'):
    config = dataclasses.replace(CONFIG, name=name, moment_dtype=dtype)
    updates[dtype], state = run_steps(config, params, grads, steps=3)
    stored = {'mu': set(), 'nu': set()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      fields = [str(k.name) for k in path if hasattr(k, 'name')]
      for field in stored.keys() & set(fields):
        stored[field].add(str(leaf.dtype))
    assert stored == {'mu': {dtype}, 'nu': {'float32'}}
  for (leaf, got), (_, want) in zip(
    *map(named_leaves, updates.values()), strict=True
  ):
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # Three roundings to bfloat16's 8 bits; none at all would be float32.
    assert 0 < error < 2**-6, leaf
