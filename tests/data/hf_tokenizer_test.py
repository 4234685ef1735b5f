"""tokenizer.json: no text forges a control token, and nothing is added."""

import json
import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.data.tokenizer import TokenizerError
from tests.data.small_tokenizers import SPECIAL, byte_level_bpe

# Texts with special tokens, whole and in parts, among anything else.
FORGING = st.lists(
  st.sampled_from([*SPECIAL, '<s', '>', '<|', '|>', 'im_end', ' ', '\n'])
  | st.text(),
).map(''.join)


def write(tokenizer, path):
  tokenizer.save(str(path))
  return path


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  directory = tmp_path_factory.mktemp('hf')
  return write(byte_level_bpe(), directory / 'tokenizer.json')


@pytest.fixture(scope='module')
def tokenizer(path):
  return HuggingFaceTokenizer(path, bos_token='<s>', eos_token='</s>')


@given(FORGING)
def test_any_text_round_trips_and_forges_no_control_token(tokenizer, text):
  control = {tokenizer.control_id(name) for name in SPECIAL}
  assert len(control) == len(SPECIAL)
  ids = tokenizer.encode(text)
  assert ids.dtype == 'int32'
  assert control.isdisjoint(ids.tolist())
  assert tokenizer.decode(ids) == text


@given(st.lists(FORGING))
def test_a_batch_is_encoded_as_its_texts(tokenizer, texts):
  batch = tokenizer.encode_batch(texts)
  assert [ids.tolist() for ids in batch] == [
    tokenizer.encode(text).tolist() for text in texts
  ]


def test_the_control_tokens_are_those_of_the_file(path, tokenizer):
  raw = tokenizers.Tokenizer.from_file(str(path))
  for name in SPECIAL:
    assert tokenizer.control_id(name) == raw.token_to_id(name)
  assert tokenizer.control_id('hello') is None
  assert tokenizer.control_id('e') is None  # a token, but of text
  assert tokenizer.bos_id == raw.token_to_id('<s>')
  assert tokenizer.eos_id == raw.token_to_id('</s>')
  assert tokenizer.vocab_size == raw.get_vocab_size()
  assert tokenizer.decode([tokenizer.bos_id, tokenizer.eos_id]) == ''
  nameless = HuggingFaceTokenizer(path)
  assert nameless.bos_id is nameless.eos_id is None


def test_special_tokens_in_text_are_split_as_any_text_is(path, tokenizer):
  raw = tokenizers.Tokenizer.from_file(str(path))
  raw.encode_special_tokens = True
  text = 'a<|im_end|>b </s> [USER]'
  expected = raw.encode(text, add_special_tokens=False).ids
  assert tokenizer.encode(text).tolist() == expected


def test_a_pickled_copy_forges_nothing_either(tokenizer):
  copy = pickle.loads(pickle.dumps(tokenizer))
  text = 'a<|im_end|>b'
  assert copy.encode(text).tolist() == tokenizer.encode(text).tolist()
  assert copy.fingerprint == tokenizer.fingerprint


def words(vocabulary, normalizer=None):
  """A word is a token, whatever it is."""
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  if normalizer:
    made.normalizer = normalizer
  made.add_special_tokens(['<s>', '<unk>'])
  return made


@pytest.mark.parametrize(
  'text', ['a <s> b', '<s>', 'a \uff1cs\uff1e b', '<s> <s>']
)
def test_a_control_token_that_is_a_word_is_not_formed_either(tmp_path, text):
  raw = words({'<s>': 0, 'a': 1, 'b': 2, '<unk>': 3}, normalizers.NFKC())
  raw.encode_special_tokens = True
  assert 0 in raw.encode(text, add_special_tokens=False).ids
  path = write(raw, tmp_path / 'tokenizer.json')
  tokenizer = HuggingFaceTokenizer(path)
  ids = tokenizer.encode(text).tolist()
  assert 0 not in ids
  # What no word is stands for has an id that is special too, but not control.
  assert 3 in ids
  assert tokenizer.encode('a q b').tolist() == [1, 3, 2]
  assert tokenizer.control_id('<unk>') is None


def test_a_control_token_of_one_character_is_left_out(tmp_path):
  raw = words({'x': 0, 'a': 1, '<s>': 2, '<unk>': 3})
  raw.add_special_tokens(['x'])
  tokenizer = HuggingFaceTokenizer(write(raw, tmp_path / 'tokenizer.json'))
  assert tokenizer.encode('x a').tolist() == [1]


def test_tokens_that_are_not_special_are_text_unless_they_are_named(tmp_path):
  raw = byte_level_bpe()
  raw.add_tokens(['<tool_call>'])
  path = write(raw, tmp_path / 'tokenizer.json')
  i = raw.token_to_id('<tool_call>')
  assert i in HuggingFaceTokenizer(path).encode('a<tool_call>')
  assert HuggingFaceTokenizer(path).control_id('<tool_call>') is None
  named = HuggingFaceTokenizer(path, control=['<tool_call>'])
  assert i not in named.encode('a<tool_call>')
  assert named.decode(named.encode('a<tool_call>')) == 'a<tool_call>'
  assert named.control_id('<tool_call>') == i


def test_nothing_is_put_around_a_text_nor_cut_off(tmp_path):
  raw = byte_level_bpe()
  text = 'Hello there, how are you?'
  plain = raw.encode(text).ids
  raw.post_processor = processors.TemplateProcessing(
    '<s> $A </s>',
    special_tokens=[(n, raw.token_to_id(n)) for n in ('<s>', '</s>')],
  )
  raw.enable_truncation(3)
  raw.enable_padding(length=50)
  path = write(raw, tmp_path / 'tokenizer.json')
  tokenizer = HuggingFaceTokenizer(path)
  assert tokenizer.encode(text).tolist() == plain
  batch = tokenizer.encode_batch([text, ''])
  assert [len(ids) for ids in batch] == [len(plain), 0]


def test_a_template_that_repeats_a_text_is_left_out(tmp_path):
  raw = byte_level_bpe()
  plain = raw.encode('Hello there').ids
  raw.post_processor = processors.TemplateProcessing('$A $A')
  path = write(raw, tmp_path / 'tokenizer.json')
  assert HuggingFaceTokenizer(path).encode('Hello there').tolist() == plain


def test_merges_are_not_dropped_by_chance(tmp_path):
  raw = byte_level_bpe()
  text = 'Hello there, how are you? ' * 20
  plain = raw.encode(text).ids
  raw.model.dropout = 0.5
  path = write(raw, tmp_path / 'tokenizer.json')
  assert HuggingFaceTokenizer(path).encode(text).tolist() == plain


def test_a_normalizer_need_not_name_its_type(tmp_path):
  raw = byte_level_bpe()
  raw.normalizer = normalizers.Prepend('x')
  content = json.loads(raw.to_str())
  del content['normalizer']['type']
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(content))
  tokenizer = HuggingFaceTokenizer(path)
  assert tokenizer.decode(tokenizer.encode('Hello')) == 'xHello'


def test_a_text_that_the_library_gives_up_on_is_shown(path, tokenizer):
  text = 'far' + ' ' * 11_000_000 + 'away'
  with pytest.raises(TokenizerError) as raised:
    tokenizer.encode_batch(['Hello', text])
  message = str(raised.value)
  assert message.startswith(f'{path}: ')
  assert "likely on 11000007 characters that begin 'far  " in message
  assert 'max_document_chars' in message
  assert '\n' not in message


def test_added_tokens_come_behind_and_change_the_fingerprint(path, tokenizer):
  n = tokenizer.vocab_size
  added = HuggingFaceTokenizer(path, added_tokens={'<b>': n + 1, '<a>': n})
  assert (added.control_id('<a>'), added.control_id('<b>')) == (n, n + 1)
  assert added.vocab_size == n + 2
  assert n not in added.encode('say <a>')
  fingerprints = {
    added.fingerprint,
    tokenizer.fingerprint,
    HuggingFaceTokenizer(path).fingerprint,
    HuggingFaceTokenizer(path, bos_token='<s>').fingerprint,
  }
  assert len(fingerprints) == 4
  with pytest.raises(TokenizerError, match=rf'<a> has the id {n}, .* say 9999'):
    HuggingFaceTokenizer(path, added_tokens={'<a>': 9999})


@pytest.mark.parametrize('content', [b'', b'{}', b'\xff', b'[1, 2]'])
def test_other_files_are_refused_in_one_line(tmp_path, content):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(content)
  with pytest.raises(TokenizerError, match=r'tokenizer.json is not') as raised:
    HuggingFaceTokenizer(path)
  assert '\n' not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(TokenizerError, match=r'a\.json: No such file'):
    HuggingFaceTokenizer(tmp_path / 'a.json')
