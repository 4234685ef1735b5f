"""Learning-rate schedule and optimizer."""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from longctx_jax.config import OptimizerConfig
from longctx_jax.sharding import leaf_name


def make_schedule(
  config: OptimizerConfig, peak_lr: float, steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak_lr`, then decay to `peak_lr * min_lr_ratio`.

  After the warm-up, with p the share of the remaining steps done and r the
  ratio: `cosine` is peak * (r + (1 - r) * (1 + cos(pi * p)) / 2), as in
  ProLong's trainer; `linear` is peak * (1 - (1 - r) * p).
  """
  ratio = config.min_lr_ratio

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
    decay_steps = max(steps - config.warmup_steps, 1)
    done = jnp.clip((step - config.warmup_steps) / decay_steps, 0.0, 1.0)
    if config.schedule == 'cosine':
      left = ratio + (1 - ratio) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif config.schedule == 'linear':
      left = 1 - (1 - ratio) * done
    else:
      left = 1.0
    return peak_lr * warmup * left

  return schedule


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Global-norm clipping, then AdamW or Muon with decoupled weight decay.

  Muon (optax.contrib.muon) takes the matrices inside the layers; embeddings,
  unembedding, norms and biases go to Adam at `adam_peak_lr`, without weight
  decay. With AdamW all but norm scales and biases decay. First moments are
  stored in `moment_dtype`; gradients are added to them in their own dtype.
  """
  schedule = make_schedule(config, config.peak_lr, steps)
  if config.name == 'adamw':
    update = optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=_is_decayed,
      mu_dtype=config.moment_dtype,
    )
  else:
    update = muon(
      schedule,
      weight_decay=config.weight_decay,
      mu_dtype=config.moment_dtype,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_learning_rate=make_schedule(config, config.adam_peak_lr, steps),
      muon_weight_dimension_numbers=_muon_dimension_numbers,
      consistent_rms=0.2,  # Moonlight, arXiv:2502.16982, sec. 2.2
    )
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def reset_schedule(opt_state: optax.OptState) -> optax.OptState:
  """The same moments at the beginning of the schedule (ProLong, stage 2)."""

  def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)

  def one(node):
    return (
      node._replace(count=jnp.zeros_like(node.count))
      if is_schedule(node)
      else node
    )

  return jax.tree.map(one, opt_state, is_leaf=is_schedule)


# Layer kernels [L, ...]: which axes are the matrix's inputs and outputs.
_MATRIX_AXES = {
  'query': MuonDimensionNumbers((1,), (2, 3)),  # [L, D, N, H]
  'key': MuonDimensionNumbers((1,), (2, 3)),
  'value': MuonDimensionNumbers((1,), (2, 3)),
  'out': MuonDimensionNumbers((1, 2), (3,)),  # [L, N, H, D]
  'gate': MuonDimensionNumbers((1,), (2,)),  # [L, D, F]
  'up': MuonDimensionNumbers((1,), (2,)),
  'down': MuonDimensionNumbers((1,), (2,)),
}


def _muon_dimension_numbers(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: _MATRIX_AXES.get(leaf_name(path)), params
  )


def _is_decayed(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not leaf_name(path).endswith(('scale', '_bias')), params
  )
