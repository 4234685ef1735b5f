"""Tasks on any runner of Apache Beam: nothing else here knows of Beam.

    Create(numbers of tasks) -> Reshuffle -> Map(step)

What a step reads and writes lies on a disk that all workers share. Texts and
tokens never pass through Beam, whose local runner would hold all of them in
memory to group them.
"""

import concurrent.futures
import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.prepare_pipeline import Runner
from longctx_jax.data.tokenizer import THREADS
from longctx_jax.progress import Progress

LOCAL = 'DirectRunner'
_LOCAL_WORKERS = 'direct_num_workers'
_POLL_S = 1.0  # ours: a progress bar moves no faster


def beam_runner(runner: str, options: Sequence[str] = ()) -> Runner:
  """A `Runner` on a Beam runner, such as 'DirectRunner' or 'FlinkRunner'.

  Args:
    options: what Beam's command line takes, as 'direct_num_workers=4'; a name
      alone is a switch.

  Raises:
    ConfigError: Beam is not installed, has no such runner, or does not take an
      option.
  """
  beam = _import_beam()
  # Errors come back from the tasks, and in one line.
  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  flags = _flags(options)
  if runner != LOCAL:
    flags.append(f'--runner={runner}')
  elif not any(f.startswith(f'--{_LOCAL_WORKERS}') for f in flags):
    flags.append(f'--{_LOCAL_WORKERS}=0')  # as many as there are cores
  _check_options(beam, flags, runner)
  _check_runner(runner)

  def run(
    step: Callable[[int], None],
    numbers: Sequence[int],
    done: Callable[[], int],
    progress: Progress,
  ) -> None:
    options = beam.options.pipeline_options.PipelineOptions(flags)

    def run_pipeline(local=None):
      with beam.Pipeline(local, options=options) as pipeline:
        tasks = pipeline | beam.Create(list(numbers), reshuffle=True)
        _ = tasks | beam.Map(step)

    stop = threading.Event()
    watcher = threading.Thread(
      target=_watch, args=(stop, done, progress), daemon=True
    )
    watcher.start()
    try:
      if runner == LOCAL:
        _run_here(run_pipeline, _num_workers(beam, options))
      else:
        run_pipeline()
    finally:
      stop.set()
      watcher.join()

  return run


def _num_workers(beam, options) -> int:
  direct = beam.options.pipeline_options.DirectOptions
  return options.view_as(direct).direct_num_workers or os.cpu_count()


def _run_here(run_pipeline, num_workers):
  """Runs a pipeline on this machine's cores.

  Beam's own local runner waits forever for a process that was killed: here each
  leaves a word when it ends badly.

  Raises:
    ChildProcessError: one of the processes was killed.
  """
  result = concurrent.futures.Future()

  def run():
    try:
      local = _local_runner(pids, last_word, num_workers)
      result.set_result(run_pipeline(local))
    except BaseException as error:
      result.set_exception(error)

  threading.excepthook = _without_grpc
  with tempfile.TemporaryDirectory() as directory:
    pids, last_word = Path(directory, 'pids'), Path(directory, 'exit_code')
    # Not one of a pool, which would be waited for when the program ends.
    threading.Thread(target=run, daemon=True).start()
    try:
      while not concurrent.futures.wait([result], _POLL_S).done:
        # The file is there a moment before its content.
        code = last_word.read_text().strip() if last_word.exists() else ''
        if code:
          raise ChildProcessError(
            f'a process of {LOCAL} was killed (exit code {code}), likely for'
            f' want of memory: lower --runner_option={_LOCAL_WORKERS}=N. The'
            ' same command goes on'
          )
      result.result()
    finally:
      if not result.done():
        _kill(pids)


def _kill(pids: Path):
  """Ends the processes that are left, which would first end their tasks."""
  for pid in pids.read_text().split() if pids.exists() else ():
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(pid), signal.SIGKILL)


def _without_grpc(args):
  """Leaves out what Beam's threads say at length of a process that is gone."""
  if not args.exc_type.__module__.startswith('grpc'):
    threading.__excepthook__(args)


def _local_runner(pids, last_word, num_workers):
  # Not `DirectRunner`, which may choose Prism, a program that it downloads.
  portability = 'apache_beam.runners.portability'
  fn_runner = importlib.import_module(f'{portability}.fn_api_runner.fn_runner')
  environments = importlib.import_module('apache_beam.transforms.environments')
  pids, last_word = shlex.quote(str(pids)), shlex.quote(str(last_word))
  # Processes, as Python's threads would take turns. Each tokenises in as many
  # threads as there are cores for it: more of them took a fifth more.
  num_threads = max(os.cpu_count() // num_workers, 1)
  # What workers log at length about themselves is kept out of sight.
  command = (
    f'({THREADS}=${{{THREADS}:-{num_threads}}} {shlex.quote(sys.executable)} -m'
    ' apache_beam.runners.worker.sdk_worker_main &'
    f' echo $! >> {pids}; wait $! || echo $? > {last_word}) 2>/dev/null'
  )
  return fn_runner.FnApiRunner(
    environments.SubprocessSDKEnvironment.from_command_string(command)
  )


def _watch(stop, done, progress):
  shown, stopped = None, False
  while not stopped:
    stopped = stop.wait(_POLL_S)
    if (now := done()) != shown:
      progress.update(now)
      shown = now


def _flags(options) -> list[str]:
  for option in options:
    if not re.match(r'\w+(=.|$)', option):
      raise ConfigError(
        f'--runner_option={option}: give a name and a value, such as'
        f' {_LOCAL_WORKERS}=4, or the name of a switch'
      )
  return [f'--{option}' for option in options]


def _check_options(beam, flags, runner):
  """Beam itself prints its pages of help, and overlooks unknown options."""
  options = beam.options.pipeline_options.PipelineOptions(flags)
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      known = options.get_all_options()
      given = options.get_all_options(retain_unknown_options=True)
  except SystemExit:
    error = said.getvalue().strip().rpartition('error: ')[2]
    raise ConfigError(f'--runner_option: {error}') from None
  unknown = sorted(given.keys() - known.keys())
  # Other runners ask their job servers for options that Beam does not know.
  if unknown and runner == LOCAL:
    raise ConfigError(
      f'--runner_option={unknown[0]}: {LOCAL} has no such option; those of'
      ' Beam are on beam.apache.org'
    )


def _check_runner(runner):
  runners = importlib.import_module('apache_beam.runners.runner')
  try:
    runners.create_runner(runner)
  except (ImportError, ValueError) as error:
    raise ConfigError(f'--runner={runner}: {error}') from error


def _import_beam() -> ModuleType:
  try:
    importlib.import_module('apache_beam.options.pipeline_options')
    return importlib.import_module('apache_beam')
  except ImportError as error:
    raise ConfigError(
      f'--runner needs Apache Beam ({error}): pip install "longctx_jax[beam]",'
      ' or leave --runner out'
    ) from error
