"""Stages chained: what carries over from one to the next, and what is kept.

A stage that has its results.json is done and is not run again; a stage that
was interrupted goes on from its newest checkpoint. So the same command, given
again after any kill, ends in the same weights.

Of several processes the first makes the corpus and writes; all train and
evaluate. They share the disk that the workdir is on.
"""

import contextlib
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from longctx_jax import hosts, sharding
from longctx_jax.checkpoint import restore_state
from longctx_jax.config import (
  ConfigError,
  RopeConfig,
  StageConfig,
  config_hash,
)
from longctx_jax.data.prepare import Corpus, prepare_corpus
from longctx_jax.directory_lock import directory_lock
from longctx_jax.evals.needle import mean_by_length
from longctx_jax.evals.predict import Predictor
from longctx_jax.evals.runner import evaluate, needle_grids
from longctx_jax.optimizer import reset_schedule
from longctx_jax.report import write_report
from longctx_jax.train import train
from longctx_jax.train_step import TrainState, init_state
from longctx_jax.weights.start import is_model_folder, open_for, start_params
from longctx_jax.workdir import (
  claim_workdir,
  read_stages,
  stage_directory,
  write_atomically,
)

log = logging.getLogger(__name__)


class Predecessor(NamedTuple):
  """The stage before, and where it is."""

  config: StageConfig
  directory: Path


def run_recipe(
  stages: tuple[StageConfig, ...],
  workdir: Path,
  *,
  profile_steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Runs all stages, evaluates after each, writes the report; the summary.

  Args:
    stages: in order.
    workdir: of the run, the same directory for all processes.
    profile_steps: steps [first, stop) of each stage to profile.

  Raises:
    ConfigError: stages that don't fit together, the mesh or the workdir; or
      another run has the workdir.
  """
  started_unix = time.time()
  check_stages(stages)
  hosts.check_same(config_hash(*stages), '--config')
  meshes = [sharding.make_mesh(stage.mesh) for stage in stages]
  for stage, mesh in zip(stages, meshes, strict=True):
    sharding.check_divisible(stage, mesh)
  check_start(stages[0])
  # Of a run on several hosts, the first one answers for all.
  lock = contextlib.nullcontext()
  if hosts.is_first():
    lock = directory_lock(workdir, workdir / 'lock', '--workdir')
  with lock:
    return _run_stages(stages, meshes, workdir, profile_steps, started_unix)


def _run_stages(
  stages, meshes, workdir, profile_steps, started_unix
) -> dict[str, Any]:
  if hosts.is_first():
    claim_workdir(
      workdir, {'stages': [dataclasses.asdict(stage) for stage in stages]}
    )
  began = time.monotonic()
  corpus = _shared_corpus(stages[0], workdir)
  log.info('corpus: ready after %.0f s', time.monotonic() - began)
  results = []
  for i, (stage, mesh) in enumerate(zip(stages, meshes, strict=True)):
    directory = stage_directory(workdir, i, stage.name)
    before = Predecessor(
      stages[i - 1], stage_directory(workdir, i - 1, stages[i - 1].name)
    )
    results.append(
      run_stage(
        stage,
        corpus,
        directory,
        mesh,
        before if i else None,
        profile_steps=profile_steps,
        started_unix=started_unix,
      )
    )
    summary = summarise(stages[: i + 1], results)
    if hosts.is_first():
      write_atomically(workdir / 'summary.json', json.dumps(summary, indent=2))
      write_report(stages[: i + 1], workdir)
    started_unix = time.time()
  return summary


def _shared_corpus(stage: StageConfig, workdir: Path) -> Corpus:
  """The corpus, made by the first process and opened by all."""
  directory = workdir / 'corpus'

  def prepare():
    return prepare_corpus(stage.corpus, directory, seed=stage.seed)

  if hosts.is_first():
    corpus = prepare()
    hosts.told(lambda: None)  # it is there
    return corpus
  hosts.told(lambda: None)
  if not stage.corpus.prepared and not directory.is_dir():
    raise ConfigError(
      f'process {hosts.index()} does not see {directory}, which process 0 made:'
      ' --workdir must be the same directory, on a disk that all hosts share'
    )
  return prepare()


def rewrite_report(workdir: Path) -> Path:
  """Writes the report of a finished or half-finished run again; its path.

  Raises:
    ConfigError: `workdir` holds no run.
  """
  if not (workdir / 'summary.json').exists():
    raise ConfigError(f'{workdir} holds no run with a finished stage')
  stages = read_stages(workdir)
  done = len(json.loads((workdir / 'summary.json').read_text())['stages'])
  return write_report(stages[:done], workdir)


def run_stage(
  stage: StageConfig,
  corpus: Corpus,
  directory: Path,
  mesh: Mesh,
  before: Predecessor | None,
  *,
  profile_steps: tuple[int, int] | None = None,
  started_unix: float | None = None,
) -> dict[str, Any]:
  """Trains and evaluates one stage, or returns the results it has already.

  Where the stage changes the RoPE of the weights that it takes over, the needle
  test runs before training too: part of what looks like the stage's work is
  done by the new RoPE alone.
  """
  path = directory / 'results.json'
  done = hosts.told(lambda: path.read_text() if path.exists() else None)
  if done:
    log.info('%s: done before', stage.name)
    return json.loads(done)
  start = start_state(stage, corpus, mesh, before)
  untrained = None
  if rope_before(stage, before) not in (None, stage.rope):
    log.info('%s: RoPE changed, nothing trained yet:', stage.name)
    predictor = Predictor.of_stage(stage, start.params, mesh)
    untrained = needle_grids(stage, predictor, corpus)
  trained = train(
    stage,
    corpus,
    directory,
    mesh,
    start,
    profile_steps=profile_steps,
    started_unix=started_unix,
  )
  hosts.now_doing('evaluating')
  evals = evaluate(stage, trained.state.params, corpus, mesh)
  results = {
    'name': stage.name,
    'steps': stage.train.steps,
    'tokens': stage.train.steps * stage.data.batch_size * stage.data.seq_len,
    'train_wall_s': trained.elapsed_s,
    'goodput': trained.goodput,
    'epochs': trained.epochs,
    'needle_untrained': untrained,
    'evals': evals,
  }
  if hosts.is_first():
    write_atomically(path, json.dumps(results, indent=2))
  return results


def check_start(stage: StageConfig) -> None:
  """Finds out before the corpus is made whether the first stage can start.

  Raises:
    ConfigError: `train.init_from` is not there, or is another model.
  """
  path = stage.train.init_from
  if path and not Path(path).is_dir():
    raise ConfigError(
      f'{stage.name}: train.init_from={path} is no directory: `longctx convert`'
      ' makes a model folder, and a stage of a run has checkpoints/'
    )
  if is_model_folder(path):
    open_for(stage)


def rope_before(
  stage: StageConfig, before: Predecessor | None
) -> RopeConfig | None:
  """The RoPE of the weights that a stage takes over; None if it is unknown."""
  if stage.train.carry_over == 'none':
    return None
  if before:
    return before.config.rope
  if is_model_folder(stage.train.init_from):
    return open_for(stage).architecture.rope
  return None


def start_state(
  stage: StageConfig, corpus: Corpus, mesh: Mesh, before: Predecessor | None
) -> TrainState:
  """A fresh state, with what the stage takes over from the one before.

  Weights, or weights and optimizer moments; the step, and with it the
  learning-rate schedule, starts again (ProLong, arXiv:2410.02660, sec. 4.1).
  The first stage may take over the weights of a pretrained model.

  Raises:
    ConfigError: the stage takes over weights, and there is nothing before it.
    WeightsError: a pretrained model that cannot be read.
    CheckpointError: what is before it cannot be taken over.
  """
  state = init_state(stage, mesh)
  carry_over = stage.train.carry_over
  if carry_over == 'none':
    return state
  checkpoints = stage.train.init_from
  if before:
    checkpoints = before.directory / 'checkpoints'
  if not checkpoints:
    raise ConfigError(
      f'{stage.name}: train.carry_over={carry_over!r} needs something to start'
      ' from: set train.init_from to a model folder (longctx convert) or to the'
      ' checkpoints/ directory of a stage, or train.carry_over=none'
    )
  if is_model_folder(checkpoints):
    for drawn in jax.tree.leaves(state.params):
      drawn.delete()  # makes room
    params = start_params(stage, corpus.tokenizer, mesh)
    log.info('%s: takes over the weights of %s', stage.name, checkpoints)
    return state._replace(params=params)
  wanted = {'params': state.params}
  if carry_over == 'weights_and_optimizer':
    wanted['opt_state'] = state.opt_state
  taken = restore_state(
    Path(checkpoints),
    wanted,
    tokenizer_fingerprint=corpus.tokenizer.fingerprint,
  )
  if 'opt_state' in taken:
    taken['opt_state'] = reset_schedule(taken['opt_state'])
  log.info('%s: takes over %s', stage.name, ' and '.join(sorted(wanted)))
  return state._replace(**taken)


def check_stages(stages: tuple[StageConfig, ...]) -> None:
  """Raises ConfigError where a stage cannot follow the one before."""
  if stages[0].train.carry_over != 'none' and not stages[0].train.init_from:
    raise ConfigError(
      f'{stages[0].name}: the first stage has nothing to take over: set'
      ' train.carry_over=none or train.init_from'
    )
  names = [stage.name for stage in stages]
  if len(set(names)) < len(names):
    raise ConfigError(f'two stages have the same name: {names}')


def summarise(
  stages: tuple[StageConfig, ...], results: list[dict[str, Any]]
) -> dict[str, Any]:
  """The figures of summary.json."""
  summaries = [
    {
      'name': result['name'],
      'steps': result['steps'],
      'wall_s': result['train_wall_s'] + result['evals']['wall_s'],
      'tokens': result['tokens'],
      'needle': mean_by_length(result['evals']['needle']['single']),
      'multi_needle': mean_by_length(result['evals']['needle']['multi']),
      'needle_untrained': mean_by_length(
        (result['needle_untrained'] or {}).get('single', {})
      ),
      'val_loss': result['evals']['val_loss'],
      'synl': result['evals']['tables'],
    }
    for result in results
  ]
  return {
    'stages': summaries,
    'total_wall_s': sum(stage['wall_s'] for stage in summaries),
    'config_hash': config_hash(*stages),
  }
