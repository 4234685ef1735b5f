"""`longctx generate`: what it says of its flags, and of long prompts."""

import logging

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.model_verbs import generate_verb
from tests.data.small_tokenizers import write_folder


@pytest.fixture
def model(make_folder):
  """--model of a model that writes text, made for 64 tokens."""
  folder = make_folder('llama_grouped_tied', vocab_size=420)
  write_folder(folder, eos_token='<|end_of_text|>')
  return f'--model={folder}'


def warnings_of(caplog):
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


@pytest.mark.parametrize('flags', [[], ['--max_len=4096']])
def test_a_prompt_beyond_the_trained_length_is_read_with_a_warning(
  model, caplog, capsys, flags
):
  caplog.set_level(logging.WARNING, 'longctx_jax')
  generate_verb([model, '--prompt=Hi', '--max_new_tokens=2', *flags])
  assert warnings_of(caplog) == []
  generate_verb([model, f'--prompt={"x" * 65}', '--max_new_tokens=2', *flags])
  (line,) = warnings_of(caplog)
  assert 'the prompt has 65 tokens, more than the 64 that the model' in line
  assert capsys.readouterr().out.count('\n') >= 2


def test_a_prompt_that_is_not_utf_8_is_named(model, tmp_path, capsys):
  path = tmp_path / 'latin.txt'
  path.write_bytes('na\u00efve'.encode('latin-1'))
  with pytest.raises(SystemExit):
    generate_verb([model, f'--prompt_file={path}'])
  err = capsys.readouterr().err
  assert f'--prompt_file={path}: byte 2 is not UTF-8' in err
  assert err.count('\n') == 1


@pytest.mark.parametrize('name', ['top_k', 'max_new_tokens', 'max_len', 'seed'])
def test_numbers_that_no_device_holds_are_refused(model, capsys, name):
  with pytest.raises(SystemExit):
    generate_verb([model, '--prompt=x', f'--{name}=99999999999999999999'])
  err = capsys.readouterr().err
  assert f'--{name}=99999999999999999999' in err
  assert err.count('\n') == 1


@pytest.mark.parametrize('flag', ['--rope.base=0', '--rope.factor=0'])
def test_a_zero_is_a_number_that_was_given(model, flag):
  with pytest.raises(ConfigError, match=flag.partition('=')[0]):
    generate_verb([model, '--prompt=x', flag])
