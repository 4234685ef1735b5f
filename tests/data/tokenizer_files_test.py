"""Folders of tokenizers: which file is taken, and what its neighbours add."""

import json

import pytest
import tokenizers

from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.data.tokenizer_files import (
  copy_tokenizer,
  load_tokenizer,
  tokenizer_fingerprint,
)
from tests.data.small_tokenizers import write_folder, write_sentencepiece


def encoded(tokenizer):
  return tokenizer.encode('Hello there, it is 4.').tolist()


def test_a_file_and_its_folder_are_the_same_tokenizer(tmp_path):
  folder = write_folder(tmp_path / 'hf', bos_token='<s>', eos_token=None)
  model = write_sentencepiece(tmp_path / 'sp' / 'tokenizer.model')
  for path, kind in (
    (folder / 'tokenizer.json', HuggingFaceTokenizer),
    (model, SentencePieceTokenizer),
  ):
    file, directory = load_tokenizer(path), load_tokenizer(str(path.parent))
    assert isinstance(file, kind)
    assert isinstance(directory, kind)
    assert file.fingerprint == directory.fingerprint
    assert tokenizer_fingerprint(path.parent) == file.fingerprint
    assert file.bos_id == directory.bos_id == file.control_id('<s>')
  assert load_tokenizer(folder).eos_id is None


def test_a_model_of_any_other_name_is_of_sentencepiece(tmp_path):
  path = write_sentencepiece(tmp_path / 'tokenizer.model.v3')
  assert isinstance(load_tokenizer(path), SentencePieceTokenizer)


def test_of_both_files_the_json_is_taken(tmp_path):
  write_folder(tmp_path)
  write_sentencepiece(tmp_path / 'tokenizer.model')
  assert isinstance(load_tokenizer(tmp_path), HuggingFaceTokenizer)


def test_a_folder_without_either_is_refused(tmp_path):
  with pytest.raises(TokenizerError, match=r'neither tokenizer\.json nor'):
    load_tokenizer(tmp_path)


def test_tokens_are_named_as_text_or_in_full(tmp_path):
  write_folder(tmp_path, bos_token={'content': '<|begin_of_text|>'})
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.bos_id == tokenizer.control_id('<|begin_of_text|>')


def test_tokens_that_a_folder_adds_to_sentencepiece_are_read(tmp_path):
  write_sentencepiece(tmp_path / 'tokenizer.model', vocab_size=330)
  decoder = {
    '1': {'content': '<s>', 'special': True},
    '331': {'content': '[BOT]', 'special': True},
  }
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps({'added_tokens_decoder': decoder, 'eos_token': '[BOT]'})
  )
  (tmp_path / 'added_tokens.json').write_text('{"[USER]": 330}')
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.vocab_size == 332
  assert tokenizer.control_id('[USER]') == 330
  assert tokenizer.eos_id == tokenizer.control_id('[BOT]') == 331


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('tokenizer_config.json', '{'),
    ('tokenizer_config.json', '[]'),
    ('tokenizer_config.json', '{"bos_token": {"contents": "<s>"}}'),
    ('tokenizer_config.json', '{"eos_token": 5}'),
    ('tokenizer_config.json', '{"eos_token": {"content": null}}'),
    ('tokenizer_config.json', '{"added_tokens_decoder": {"a": {}}}'),
    (
      'tokenizer_config.json',
      '{"added_tokens_decoder": {"5": {"content": 5}}}',
    ),
    ('added_tokens.json', '{"<a>": "last"}'),
    ('added_tokens.json', '3'),
  ],
)
def test_a_damaged_neighbour_is_named(tmp_path, name, content):
  write_folder(tmp_path)
  (tmp_path / name).write_text(content)
  with pytest.raises(TokenizerError, match=rf'cannot read .*{name}') as raised:
    load_tokenizer(tmp_path)
  assert '\n' not in str(raised.value)


@pytest.fixture(params=['hf', 'sentencepiece'])
def given(request, tmp_path):
  if request.param == 'hf':
    return write_folder(tmp_path / 'given', bos_token='<s>', eos_token='</s>')
  return write_sentencepiece(tmp_path / 'given' / 'tokenizer.model')


def test_a_copy_is_the_same_tokenizer(given, tmp_path):
  (tmp_path / 'copy').mkdir()
  copy_tokenizer(given, tmp_path / 'copy')
  given, copy = load_tokenizer(given), load_tokenizer(tmp_path / 'copy')
  assert copy.fingerprint == given.fingerprint
  assert (copy.bos_id, copy.eos_id) == (given.bos_id, given.eos_id)
  assert encoded(copy) == encoded(given)


def test_a_copy_has_the_tokens_that_are_added_and_named(given, tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  first.mkdir()
  second.mkdir()
  # Behind the last id, in order; what is there already is not added again.
  copy_tokenizer(given, first, added_tokens=('<z>', '<s>', '<a>'))
  copy_tokenizer(first, second, added_tokens=('<m>',), eos_token='<a>')
  given, copy = load_tokenizer(given), load_tokenizer(second)
  n = given.vocab_size
  names = ('<s>', '<z>', '<a>', '<m>')
  ids = [copy.control_id(name) for name in names]
  assert ids == [given.control_id('<s>'), n, n + 1, n + 2]
  assert copy.eos_id == n + 1
  assert copy.bos_id == given.bos_id
  assert copy.vocab_size == n + 3
  assert encoded(copy) == encoded(given)
  assert copy.fingerprint != given.fingerprint


def test_a_name_that_is_no_token_is_refused(given, tmp_path):
  (tmp_path / 'copy').mkdir()
  with pytest.raises(TokenizerError, match=r'\.eos_token=<eod>: .*no such'):
    copy_tokenizer(given, tmp_path / 'copy', eos_token='<eod>')


def test_tokens_without_special_ids_of_the_json_keep_theirs(tmp_path):
  # As Qwen2's added_tokens.json, which repeats what tokenizer.json says.
  write_folder(tmp_path)
  raw = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  i = raw.token_to_id('<|im_end|>')
  (tmp_path / 'added_tokens.json').write_text(json.dumps({'<|im_end|>': i}))
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.control_id('<|im_end|>') == i
  assert tokenizer.vocab_size == raw.get_vocab_size()
