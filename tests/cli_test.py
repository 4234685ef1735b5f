"""The command line of a user who makes mistakes: one clear line, no traceback.

Parsing only: nothing here trains, and no working directory is made.
"""

import sys

import pytest

from longctx_jax import __main__ as cli
from tests.architecture_test import ROOT

RECIPE = 'configs/longskywork/recipe.py'
PRETRAIN = 'configs/longskywork/pretrain.py'


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  """run(arguments) -> (exit status, stdout, stderr) of `longctx arguments`."""
  monkeypatch.chdir(ROOT)

  def run(*argv):
    # ml_collections loads each config file under this one name.
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)
    argv = [arg.replace('WORKDIR', str(tmp_path / 'run')) for arg in argv]
    monkeypatch.setattr(sys, 'argv', ['longctx', *argv])
    with pytest.raises(SystemExit) as exit_:
      cli.main()
    assert not (tmp_path / 'run').exists()
    out, err = capsys.readouterr()
    return exit_.value.code, out, err

  return run


@pytest.mark.parametrize(
  ('argv', 'says'),
  [
    (['recipee'], "no verb 'recipee'; there are prepare, recipe, train"),
    (['recipe'], '--config=FILE.py is missing'),
    (['recipe', '--config'], '--config=FILE.py is missing'),
    (['recipe', f'--config={RECIPE}:tiny'], '--workdir=DIR is missing'),
    (['recipe', f'--config={RECIPE}:tiny', '--workdir='], '--workdir=DIR is'),
    (['report'], '--workdir=DIR is missing'),
    (['prepare'], '--config=FILE.py is missing'),
    (['prepare', f'--config={PRETRAIN}:tiny'], '--out=DIR is missing'),
    (
      [
        *('train', f'--config={PRETRAIN}:tiny', '--workdir=WORKDIR'),
        '--profile_steps=5',
      ],
      '--profile_steps=5: give FIRST,STOP, such as 10,13',
    ),
    (
      [
        *('train', f'--config={PRETRAIN}:tiny', '--workdir=WORKDIR'),
        '--num_processes=2',
      ],
      'give --coordinator=HOST:PORT, --num_processes=N and --process_id=I',
    ),
    (
      [
        *('prepare', f'--config={PRETRAIN}:tiny', '--out=WORKDIR'),
        '--runner_option=direct_num_workers=2',
      ],
      '--runner_option is for a --runner: give one',
    ),
    (
      [
        *('prepare', f'--config={RECIPE}:tiny', '--out=WORKDIR'),
        *('--config.corpus.tokenizer_path=nope.model',),
      ],
      'nope.model',
    ),
    (['report', '--workdir=WORKDIR'], 'holds no run with a finished stage'),
    (
      ['train', '--config=configs/nope.py', '--workdir=WORKDIR'],
      '--config=configs/nope.py: no such file',
    ),
    (
      ['train', '--config', 'configs', '--workdir=WORKDIR'],
      '--config=configs: no such file',
    ),
    (
      ['train', '--config=configs/common.py', '--workdir=WORKDIR'],
      '--config=configs/common.py: the file has no get_config()',
    ),
    (
      ['train', f'--config={PRETRAIN}:huge', '--workdir=WORKDIR'],
      "--config: config option 'huge' is unknown; this file has tiny",
    ),
    (
      ['train', f'--config={PRETRAIN}:topology=v9-1', '--workdir=WORKDIR'],
      '--config: config option topology=v9-1 is unknown; this file has v5p-8',
    ),
    (
      ['train', f'--config={PRETRAIN}:tiny', '--workdri=WORKDIR'],
      "Unknown command line flag 'workdri'. Did you mean: workdir",
    ),
    (
      ['train', f'--config={PRETRAIN}:tiny', '--workdir=WORKDIR', 'fast'],
      "unexpected argument 'fast'",
    ),
    (
      ['train', f'--config={RECIPE}:tiny', '--workdir=WORKDIR'],
      'this config is of several stages: it is run by `longctx recipe`',
    ),
    (
      ['recipe', f'--config={PRETRAIN}:tiny', '--workdir=WORKDIR'],
      'A file of one stage is run by `longctx train`',
    ),
    (
      ['inspect', f'--config={RECIPE}:tiny', '--workdir=WORKDIR', '--stage=x'],
      '--stage=x: there is no such stage, only pretrain, cip, sft, long_sft',
    ),
    (
      ['inspect', f'--config={RECIPE}:tiny', '--workdir=WORKDIR', '--rows=0'],
      'flag --rows=0: 0 is not',
    ),
    (
      ['inspect', f'--config={RECIPE}:tiny', '--workdir=WORKDIR', '--step=-1'],
      'flag --step=-1: -1 is not',
    ),
    (
      ['report', '--workdir=WORKDIR', '--step=1'],
      "Unknown command line flag 'step'",
    ),
  ],
  ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_wrong_command_ends_in_one_clear_line(run, argv, says):
  code, out, err = run(*argv)
  assert code in (1, 2)
  assert out == ''
  assert says in err
  assert err.startswith('longctx: ')
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  ('config', 'flag', 'says'),
  [
    (
      PRETRAIN,
      '--config.trian.steps=3',
      "--config.trian.steps: no field 'trian'; did you mean train?",
    ),
    (
      PRETRAIN,
      '--config.train.stesp=3',
      "--config.train.stesp: no field 'stesp'; did you mean steps?",
    ),
    # No name is close to these.
    (
      PRETRAIN,
      '--config.train.qqq=3',
      "longctx: --config.train.qqq: no field 'qqq' (longctx train --help)",
    ),
    (PRETRAIN, '--config.qqq.steps=3', 'longctx: --config.qqq.steps: no field'),
    (
      RECIPE,
      '--config.trian.steps=3',
      "no field 'trian'; fields of a stage are --config.stages.STAGE.FIELD",
    ),
    (
      RECIPE,
      '--config.stages.cip.train.stesp=3',
      "--config.stages.cip.train.stesp: no field 'stesp'; did you mean steps?",
    ),
    (PRETRAIN, '--config.train.steps=many', "int() with base 10: 'many'"),
    (PRETRAIN, '--config.train.steps=2.5', "int() with base 10: '2.5'"),
    (PRETRAIN, '--config.data.document_mask=maybe', "boolean flag', 'maybe'"),
    (PRETRAIN, '--config.train=3', "--config.train=3: Failed to parse '3'"),
    (PRETRAIN, '--config.train.steps.x=3', 'train.steps.x'),
    (
      PRETRAIN,
      '--config.data.mixture.code@512k.weight=.1',
      'code@512k.weight: a name that is no word goes in brackets, as',
    ),
    (
      PRETRAIN,
      '--config.train.micro_batches=0',
      'config.train.micro_batches must be at least 1, got 0',
    ),
    (
      RECIPE,
      '--config.stages.cip.data.batch_size=0',
      'config.stages.cip.data.batch_size must be at least 1, got 0',
    ),
    (PRETRAIN, '--config.mesh.fsdp=3', "'fsdp': 3, 'context': 1"),
    (
      PRETRAIN,
      '--config.train.carry_over=weights',
      'set train.carry_over=none or train.init_from',
    ),
  ],
  ids=lambda value: value if value.startswith('--') else '',
)
def test_a_wrong_field_is_named_with_its_path(run, config, flag, says):
  verb = 'recipe' if config == RECIPE else 'train'
  code, out, err = run(
    verb, f'--config={config}:tiny', '--workdir=WORKDIR', flag
  )
  assert code in (1, 2)
  assert out == ''
  assert says in err
  assert err.count('\n') == 1


@pytest.mark.parametrize('verb', list(cli.VERBS))
def test_help_shows_flags_and_a_command_of_the_verb(run, verb):
  code, out, err = run(verb, '--help')
  assert (code, err) == (0, '')
  of_verb = {'convert': '--out:', 'prepare': '--out:', 'plan': '--topology:'}
  assert of_verb.get(verb, '--workdir:') in out
  assert f'longctx {verb} --' in out
  without_config = ('convert', 'evaluate', 'generate', 'report')
  assert ('--config:' in out) == (verb not in without_config)


@pytest.mark.parametrize(
  ('verb', 'error', 'says'),
  [
    (
      'generate',
      ValueError('RESOURCE_EXHAUSTED: no room for 9 bytes\nBuffers:\n'),
      'longctx: out of memory (RESOURCE_EXHAUSTED: no room for 9 bytes):'
      ' shorten the prompt, or give --dtype=bfloat16\n',
    ),
    ('inspect', MemoryError(), 'longctx: out of memory (MemoryError)\n'),
  ],
)
def test_what_does_not_fit_in_memory_is_one_line(
  run, monkeypatch, verb, error, says
):
  def fill(argv):
    raise error

  monkeypatch.setitem(cli.VERBS, verb, fill)
  assert run(verb) == (1, '', says)


def test_no_verb_at_all_is_an_error_and_help_is_not(run):
  assert run()[0] == 2
  for ask in ('--help', '-h', 'help'):
    code, out, err = run(ask)
    assert (code, err) == (0, '')
    assert all(f'longctx {verb} --' in out for verb in cli.VERBS)


def test_config_files_find_their_neighbours_from_any_directory(
  run, monkeypatch, tmp_path
):
  """As the installed `longctx`, which has no working directory on sys.path."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    sys, 'path', [p for p in sys.path if p not in ('', '.', str(ROOT))]
  )
  for name in [m for m in sys.modules if m.split('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  _, _, err = run(
    'train',
    f'--config={ROOT / PRETRAIN}:tiny',
    '--workdir=WORKDIR',
    '--config.train.steps=0',
  )
  assert 'config.train.steps must be at least 1, got 0' in err


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    ('generate --prompt=x', '--model=DIR or --workdir=DIR is missing'),
    ('generate --model=a --workdir=b --prompt=x', 'are two: give one'),
    ('generate --model=a', '--prompt=TEXT or --prompt_file=FILE is missing'),
    ('generate --model=a --prompt=x', 'a is neither a model folder nor a'),
    ('generate --model=a --prompt=x --top_p=0', 'top_p must be above 0'),
    ('generate --model=a --prompt=x --top_k=-1', 'top_k'),
    ('generate --model=a --prompt=x --dtype=int8', '--dtype=int8: can be'),
    ('evaluate --model=a --suite=x', '--suite=x: there are needle, multi_'),
    ('evaluate --model=a --lengths=1K', '--lengths=1K: give whole numbers'),
    ('evaluate --model=a --lengths=0', 'give numbers of tokens'),
    ('evaluate --model=a --samples=0', '--samples=0 must be at least 1'),
    ('evaluate --model=a --needle=hay', '--needle=hay: can be number, sand'),
    ('evaluate --model=a --needle_answer=x', 'needs all of --needle_sentence'),
    ('evaluate --model=a --data=x.jsonl', '--data=x.jsonl is for one --suite'),
    ('convert --from=a', '--out=DIR is missing'),
    ('convert --out=a', '--from=MODEL is missing'),
    ('convert --from=nowhere --out=a', '--from=nowhere: neither a .gguf file'),
  ],
)
def test_a_wrong_word_about_a_model_is_one_clear_line(
  run, tmp_path, monkeypatch, command, message
):
  monkeypatch.chdir(tmp_path)
  code, out, err = run(*command.split())
  assert code in (1, 2)
  assert out == ''
  assert err.count('\n') == 1
  assert message in err
  assert list(tmp_path.iterdir()) == []
