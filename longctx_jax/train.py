"""The training loop of one stage. No recipe branches."""

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from longctx_jax import sharding
from longctx_jax.batch import Batch
from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import ConfigError, StageConfig, to_json
from longctx_jax.data.pipeline import BatchSource, DataState, make_pipeline
from longctx_jax.data.prepare import Corpus
from longctx_jax.flops import Throughput
from longctx_jax.metrics import MetricsWriter
from longctx_jax.ops.sequence_layout import to_layout
from longctx_jax.progress import Progress
from longctx_jax.train_step import TrainState, init_state, make_train_step

log = logging.getLogger(__name__)


def put_batch(batch: Batch, config: StageConfig, mesh: Mesh) -> Batch:
  """Puts a host's rows of a batch onto the mesh, in the layout of its rows."""
  parallel = sharding.context_parallel(config.mesh, mesh)
  _, num_blocks = sharding.host_block(mesh)

  def put(x):
    shape = (num_blocks * x.shape[0], x.shape[1])
    stored = to_layout(x, parallel.layout, parallel.num_shards)
    return jax.make_array_from_process_local_data(
      sharding.batch_sharding(mesh), stored, shape
    )

  return Batch(*map(put, batch))


class Trained(NamedTuple):
  """What a stage leaves behind."""

  state: TrainState
  elapsed_s: float  # of training, interruptions left out
  epochs: dict[str, float]  # how often each source that has an end was read


def train(
  config: StageConfig,
  corpus: Corpus,
  directory: Path,
  mesh: Mesh,
  start: TrainState | None = None,
) -> Trained:
  """Runs a stage to its last step, from its newest checkpoint if there is one.

  Args:
    config: the stage.
    corpus: what it trains on.
    directory: receives checkpoints/, metrics.jsonl and TensorBoard events.
    mesh: where it runs.
    start: the state to start from if there is no checkpoint; None draws one.

  Raises:
    ConfigError: sizes that don't fit the mesh, or a corpus that changed.
    FloatingPointError: a loss or gradient that is not finite.
  """
  sharding.check_divisible(config, mesh)
  steps, batch_size = config.train.steps, config.data.batch_size
  source = BatchSource(config.data, corpus, seed=config.seed, num_steps=steps)
  checkpoints = Checkpoints(directory / 'checkpoints', config.checkpoint.keep)
  state = init_state(config, mesh) if start is None else start
  state, first_step, elapsed_before = _resume(
    checkpoints, state, source, config
  )
  train_step = make_train_step(config, mesh)
  batches = make_pipeline(
    source,
    batch_size,
    start_step=first_step,
    host=sharding.host_block(mesh),
    num_workers=config.data.num_workers,
  )
  log.info('%s: %s', config.name, sharding.describe_attention(config, mesh))
  throughput = Throughput(config.model, mesh.devices)
  began = time.monotonic()

  def elapsed():
    return elapsed_before + time.monotonic() - began

  def save(done):
    writer.flush()
    checkpoints.save(
      state,
      DataState(done, config.seed, source.fingerprint),
      config_json=to_json(config),
      tokenizer_fingerprint=corpus.tokenizer.fingerprint,
      elapsed_s=elapsed(),
    )

  def record(step, metrics):
    metrics = {name: float(value) for name, value in metrics.items()}
    _check_finite(metrics, step, config, source)
    throughput.add(metrics['tokens'], metrics['attended_pairs'])
    if step % config.train.log_every == 0 or step == steps - 1:
      writer.write(
        step, {**metrics, **throughput.take(), 'elapsed_s': elapsed()}
      )
    progress.update(step + 1, {n: metrics[n] for n in ('loss', 'lr')})

  with (
    contextlib.closing(batches),
    contextlib.closing(checkpoints),
    MetricsWriter(directory, first_step) as writer,
    Progress(config.name, steps, first_step) as progress,
  ):
    unread = None
    for step in range(first_step, steps):
      # Copied to the devices while they still work on the step before.
      batch = put_batch(next(batches), config, mesh)
      state, metrics = train_step(state, batch)
      # Reading the metrics waits for the step, so read those of the step
      # before while this one runs.
      if unread is not None:
        record(*unread)
      unread = step, metrics
      done = step + 1
      if done % config.checkpoint.every_steps == 0 or done == steps:
        # Never save what a non-finite loss has touched.
        record(*unread)
        unread = None
        save(done)
  return Trained(state, elapsed(), source.epochs)


def _resume(checkpoints, state, source, config):
  """(state, step, elapsed seconds) from the newest checkpoint, or as given."""
  restored = checkpoints.restore_latest(state)
  if restored is None:
    return state, 0, 0.0
  state, data, elapsed_s = restored
  if (data.seed, data.fingerprint) != (config.seed, source.fingerprint):
    raise ConfigError(
      f'{config.name}: the corpus changed since step {data.step} was saved'
      f' (data fingerprint {data.fingerprint} then, {source.fingerprint} now):'
      ' restore it, or start in another --workdir'
    )
  log.info('%s: going on from step %d', config.name, data.step)
  return state, data.step, elapsed_s


def _check_finite(metrics, step, config, source):
  for name in ('loss', 'grad_norm'):
    if not math.isfinite(metrics[name]):
      first = step * config.data.batch_size
      last = first + config.data.batch_size - 1
      raise FloatingPointError(
        f'{config.name}: {name} is {metrics[name]} at step {step}, on rows'
        f' {first}..{last} of seed {config.seed}, data {source.fingerprint}.'
        ' The last checkpoint was saved before it; lower optimizer.peak_lr or'
        f' look at these rows: longctx inspect --step={step}'
      )
