"""The launchers: the commands they run are those that --dry-run prints."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHERS = {
  'tpu_pod': {'NAME': 'pod', 'ZONE': 'z', 'TYPE': 'v5p-64', 'SPOT': '1'},
  'gke': {'NAME': 'pod', 'CLUSTER': 'c', 'ZONE': 'z', 'TYPE': 'v5p-64'},
  'slurm': {'NAME': 'pod', 'NODES': '2', 'GPUS': '8', 'SBATCH': '--qos=high'},
}
FLAGS = ['--config=a.py:x', '--workdir=/mnt/two words']


def make_command(path, body):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!{sys.executable}\n{body}')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


# Appends its arguments to a file; `describe` has an answer of its own.
RECORD = """
import os, shlex, sys
from pathlib import Path
here = Path(os.environ['RECORD'])
states = here / 'states'
if 'describe' in sys.argv:
  first, *rest = states.read_text().split()
  states.write_text(' '.join(rest) if rest else first)
  print('' if first == 'none' else first)
else:
  argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
  with (here / 'commands').open('a') as file:
    file.write(shlex.join(argv) + '\\n')
  if 'host.sh' in sys.argv[-1] and 'codes' in os.listdir(here):
    first, *rest = (here / 'codes').read_text().split()
    (here / 'codes').write_text(' '.join(rest))
    sys.exit(int(first))
"""


@pytest.fixture
def copy(tmp_path):
  """launch/ beside a .venv in which `longctx` is what a test makes it."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  for name in ('setup.py', 'pyproject.toml'):
    (tmp_path / name).touch()
  make_command(tmp_path / '.venv/bin/python', '')
  for extra in ('cuda', 'tpu'):
    (tmp_path / f'.venv/installed-{extra}').touch()
  for name in ('gcloud', 'xpk', 'sbatch', 'git'):
    make_command(tmp_path / f'bin/{name}', RECORD)
  (tmp_path / 'states').write_text('none')
  return tmp_path


def launch(copy, name, *flags, variables=None):
  done = subprocess.run(
    ['bash', f'launch/{name}.sh', *flags],
    cwd=copy,
    env={
      **os.environ,
      'PATH': f'{copy / "bin"}:{os.environ["PATH"]}',
      'PYTHON': sys.executable,
      'RECORD': str(copy),
      'PAUSE': '0',
      **(LAUNCHERS[name] if variables is None else variables),
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  commands = copy / 'commands'
  ran = commands.read_text().splitlines() if commands.exists() else []
  return done, [shlex.split(line) for line in ran]


@pytest.mark.parametrize('name', LAUNCHERS)
def test_what_is_printed_is_what_is_run(copy, name):
  printed, ran = launch(copy, name, '--dry-run', *FLAGS)
  assert printed.returncode == 0, printed.stderr
  assert ran == []
  (copy / 'states').write_text('none ACTIVE')
  done, ran = launch(copy, name, *FLAGS)
  assert done.returncode == 0, done.stderr
  assert [shlex.split(line) for line in printed.stdout.splitlines()] == ran
  # The last one runs the same on every host; the flags come through whole.
  on_host = shlex.split(ran[-1][-1].partition('=')[2])
  assert any(word.endswith('launch/host.sh') for word in on_host)
  assert [word for word in on_host if word in FLAGS] == FLAGS


def test_a_slice_that_was_taken_away_is_asked_for_again(copy):
  # Not there, made, queued, ready, trained on, suspended: and once more.
  (copy / 'states').write_text(
    'none WAITING_FOR_RESOURCES ACTIVE SUSPENDING SUSPENDING SUSPENDED none'
    ' PROVISIONING ACTIVE ACTIVE'
  )
  (copy / 'codes').write_text('255 3')
  done, ran = launch(copy, 'tpu_pod', *FLAGS)
  assert done.returncode == 3, done.stderr
  verbs = [
    next(word for word in ('create', 'delete', 'host.sh') if word in str(argv))
    for argv in ran
    if 'archive' not in argv and 'scp' not in argv and 'tar' not in argv[-1]
  ]
  assert verbs == ['create', 'host.sh', 'delete', 'create', 'host.sh']


@pytest.mark.parametrize('name', LAUNCHERS)
def test_what_is_not_said_is_one_line(copy, name):
  done, ran = launch(copy, name, *FLAGS, variables={'NAME': ''})
  assert (done.returncode, ran) == (2, [])
  assert done.stderr.startswith('longctx: set NAME')


# Ends with the next of the codes; of signals, `wait` waits for SIGTERM.
ENDS = """
import os, signal, sys, time
from pathlib import Path
here = Path(os.environ['RECORD'])
(here / 'started').open('a').write(' '.join(sys.argv[1:]) + '\\n')
first, *rest = (here / 'codes').read_text().split()
(here / 'codes').write_text(' '.join(rest))
if first == 'wait':
  signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))
  print('waiting', flush=True)
  time.sleep(60)
if first == 'kill':
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(first))
"""


@pytest.mark.parametrize(
  ('codes', 'code', 'starts'),
  [('75 kill 0', 0, 3), ('1', 1, 1), ('75 2', 2, 2), ('75 75 75', 75, 3)],
)
def test_a_host_starts_again_what_was_stopped_to_go_on(
  copy, codes, code, starts
):
  make_command(copy / '.venv/bin/longctx', ENDS)
  (copy / 'codes').write_text(codes)
  done = subprocess.run(
    ['bash', 'launch/host.sh', 'tpu', *FLAGS],
    cwd=copy,
    env={**os.environ, 'RECORD': str(copy), 'PAUSE': '0', 'RESTARTS': '2'},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == code, done.stderr
  started = (copy / 'started').read_text().splitlines()
  assert started == ['recipe ' + ' '.join(FLAGS)] * starts


def test_sigterm_to_a_host_reaches_the_run_and_is_waited_for(copy):
  make_command(copy / '.venv/bin/longctx', ENDS)
  (copy / 'codes').write_text('wait 0')
  with subprocess.Popen(
    ['bash', 'launch/host.sh', 'cuda', *FLAGS],
    cwd=copy,
    env={**os.environ, 'RECORD': str(copy), 'PAUSE': '0'},
    stdout=subprocess.PIPE,
    text=True,
  ) as host:
    assert host.stdout.readline() == 'waiting\n'
    host.send_signal(signal.SIGTERM)
    # Not again on a machine that goes away: the launcher does it elsewhere.
    assert host.wait(60) == 75
  assert len((copy / 'started').read_text().splitlines()) == 1


def test_shellcheck_finds_nothing():
  beside = Path(sys.executable).with_name('shellcheck')
  shellcheck = beside if beside.exists() else shutil.which('shellcheck')
  if not shellcheck:
    pytest.skip('shellcheck is not installed: extra [dev]')
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  assert len(scripts) >= 7
  done = subprocess.run(
    [shellcheck, '-x', '-P', 'SCRIPTDIR', *scripts],
    capture_output=True,
    text=True,
  )
  assert done.stdout == ''


def test_launchers_fit_on_a_page_and_hold_no_hyper_parameters():
  for path in (ROOT / 'launch').glob('*.sh'):
    text = path.read_text()
    assert len(text.splitlines()) <= 40, path
    assert '--config.' not in text.replace('[--config.field=value', ''), path
