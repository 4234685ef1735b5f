"""The training loop of one stage. No recipe branches."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from longctx_jax import hosts, preemption, sharding
from longctx_jax.batch import Batch
from longctx_jax.checkpoint import Checkpoints, OtherDtypeError
from longctx_jax.config import ConfigError, StageConfig, to_json
from longctx_jax.data.pipeline import BatchSource, DataState, make_pipeline
from longctx_jax.data.prepare import Corpus
from longctx_jax.flops import Throughput
from longctx_jax.goodput import Goodput, never_saved
from longctx_jax.memory_peak import peak_memory
from longctx_jax.metrics import MetricsWriter, NoMetrics
from longctx_jax.ops.sequence_layout import to_layout
from longctx_jax.profile_window import ProfileWindow
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
  goodput: dict[str, float]  # see goodput.Goodput.metrics


def train(
  config: StageConfig,
  corpus: Corpus,
  directory: Path,
  mesh: Mesh,
  start: TrainState | None = None,
  *,
  profile_steps: tuple[int, int] | None = None,
  started_unix: float | None = None,
) -> Trained:
  """Runs a stage to its last step, from its newest checkpoint if there is one.

  Args:
    config: the stage.
    corpus: what it trains on.
    directory: receives checkpoints/, metrics.jsonl and TensorBoard events; on
      a disk that all processes share.
    mesh: where it runs.
    start: the state to start from if there is no checkpoint; None draws one.
    profile_steps: steps [first, stop) to profile, into the events' directory.
    started_unix: when this process began with the stage; None: now.

  Raises:
    ConfigError: sizes that don't fit the mesh; a corpus or a dtype that
      changed since a checkpoint was saved.
    FloatingPointError: a loss or gradient that is not finite.
    Preempted: the run was asked to stop, and all that was done is saved.
  """
  started_unix = time.time() if started_unix is None else started_unix
  sharding.check_divisible(config, mesh)
  steps, batch_size = config.train.steps, config.data.batch_size
  source = BatchSource(config.data, corpus, seed=config.seed, num_steps=steps)
  hosts.check_same(source.fingerprint, 'the rows')
  fresh = never_saved(
    directory / 'started.json', started_unix, write=hosts.is_first()
  )
  checkpoints = Checkpoints(directory / 'checkpoints', config.checkpoint.keep)
  state = init_state(config, mesh) if start is None else start
  state, first_step, saved = _resume(checkpoints, state, source, config)
  clock = Goodput(started_unix, saved or fresh)
  train_step = make_train_step(config, mesh)
  batches = make_pipeline(
    source,
    batch_size,
    start_step=first_step,
    host=sharding.host_block(mesh),
    num_workers=config.data.num_workers,
  )
  log.info('%s: %s', config.name, sharding.describe_attention(config, mesh))
  throughput = Throughput(
    config.model, mesh.devices, (batch_size, config.data.seq_len)
  )

  def save(done):
    clock.enter('checkpoint')
    hosts.now_doing('writing a checkpoint')
    writer.flush()
    checkpoints.save(
      state,
      DataState(done, config.seed, source.fingerprint),
      config_json=to_json(config),
      tokenizer_fingerprint=corpus.tokenizer.fingerprint,
      clock=clock.saved(),
    )

  def next_batch(step):
    clock.enter('data_wait')
    hosts.now_doing('reading data', step)
    began = time.monotonic()
    batch = next(batches)
    waited = time.monotonic() - began
    clock.enter('compile' if step == first_step else 'step')
    hosts.now_doing('in the step')
    # Copied to the devices while they still work on the step before.
    return put_batch(batch, config, mesh), waited

  def record(step, metrics, waited):
    metrics = {name: float(value) for name, value in metrics.items()}
    _check_finite(metrics, step, config, source)
    throughput.add(metrics['tokens'], metrics['attended_pairs'], waited)
    if step % config.train.log_every == 0 or step == steps - 1:
      metrics |= throughput.take() | clock.metrics() | peak_memory()
      writer.write(step, {**metrics, 'elapsed_s': clock.training_s()})
    progress.update(step + 1, {n: metrics[n] for n in ('loss', 'lr')})

  events = directory / 'tensorboard'
  with (
    preemption.stopping_after_steps(),
    contextlib.closing(batches),
    _closing(checkpoints),
    MetricsWriter(directory, first_step) if hosts.is_first() else NoMetrics()
    as writer,
    ProfileWindow(profile_steps if hosts.is_first() else None, events)
    as profile,
    Progress(config.name, steps, first_step) as progress,
  ):  # fmt: skip
    unread, done, stops = None, first_step, False
    for step in range(first_step, steps):
      batch, waited = next_batch(step)
      profile.begin(step)
      state, metrics = train_step(state, batch)
      profile.end(step, metrics['loss'])
      # Reading the metrics waits for the step, so read those of the step
      # before while this one runs.
      if unread is not None:
        record(*unread)
      unread = step, metrics, waited
      done = step + 1
      stops = preemption.stops_after(done)
      if stops or done % config.checkpoint.every_steps == 0 or done == steps:
        # Never save what a non-finite loss has touched.
        record(*unread)
        unread = None
        save(done)
      if stops:
        break
  if stops:
    raise preemption.Preempted(
      f'{config.name}: stopped after {done} of {steps} steps, which are saved'
    )
  preemption.stop_if_asked()
  return Trained(state, clock.training_s(), source.epochs, clock.metrics())


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints) -> Iterator[None]:
  """Waits for what is being written, in step with the other processes."""
  try:
    yield
  except BaseException:
    # Other processes may be elsewhere, and closing waits for them.
    if hosts.count() == 1:
      checkpoints.close()
    raise
  checkpoints.close()


def _resume(checkpoints, state, source, config):
  """(state, step, the clock's figures or None) of the newest checkpoint."""
  try:
    restored = checkpoints.restore_latest(state)
  except OtherDtypeError as error:
    raise ConfigError(
      f'{config.name}: optimizer.moment_dtype or model.param_dtype changed'
      f' ({error}): set it back, or start in another --workdir'
    ) from error
  if restored is None:
    return state, 0, None
  state, data, clock = restored
  if (data.seed, data.fingerprint) != (config.seed, source.fingerprint):
    raise ConfigError(
      f'{config.name}: the corpus changed since step {data.step} was saved'
      f' (data fingerprint {data.fingerprint} then, {source.fingerprint} now):'
      ' restore it, or start in another --workdir'
    )
  log.info('%s: going on from step %d', config.name, data.step)
  return state, data.step, clock


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
