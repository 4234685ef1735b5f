"""A corpus of a given tokenizer and template, or of one that is trained."""

import shutil

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.evals.haystack import Haystack
from tests.data.made_texts import config_of, fingerprints, read
from tests.data.small_tokenizers import (
  SPECIAL,
  byte_level_bpe,
  write_folder,
  write_sentencepiece,
)

LLAMA3 = {
  'bos_token': '<|begin_of_text|>',
  'eos_token': '<|eot_id|>',
}


@pytest.fixture(scope='module')
def llama3(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('given') / 'llama3', **LLAMA3)


def given(path, **changes):
  fields = {'tokenizer_path': str(path), 'vocab_size': 420}
  return {**fields, 'chat_template': 'llama3', **changes}


@pytest.mark.parametrize('bos', ['document', 'none'])
@pytest.mark.parametrize('eos', ['document', 'none'])
def test_the_policy_says_what_is_around_documents(
  texts, llama3, tmp_path, bos, eos
):
  config = config_of(
    texts, **given(llama3, bos=bos, eos=eos, eos_token='<|end_of_text|>')
  )
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  control = made.tokenizer.control_id
  begin = [control('<|begin_of_text|>')] * (bos == 'document')
  end = [control('<|end_of_text|>')] * (eos == 'document')
  for i in range(len(made.documents)):
    name = made.documents.name(i).removeprefix('text_files/')
    text = (texts / name).read_text()
    expected = [*begin, *made.tokenizer.encode(text), *end]
    assert read(made.documents, i)[0].tolist() == expected
  haystack = Haystack(made.heldout, made.tokenizer)
  around = len(begin) + len(end)
  heldout = made.heldout.lengths
  assert len(haystack) == heldout.sum() - around * len(heldout)


def test_texts_that_a_tokenizer_makes_nothing_of_are_left_out(
  texts, tmp_path, caplog
):
  # NFKC takes control characters away, and nothing is put around the text.
  own = shutil.copytree(texts, tmp_path / 'texts')
  for i in range(9):
    (own / f'control{i}.txt').write_text(chr(1) * (300 + i))
  path = write_sentencepiece(
    tmp_path / 'x.model', vocab_size=330, normalization_rule_name='nmt_nfkc'
  )
  config = config_of(
    own,
    tokenizer_path=str(path),
    vocab_size=420,
    added_tokens=TEMPLATES['plain'].control,
    **{'bos': 'none', 'eos': 'none'},
  )
  with caplog.at_level('INFO'):
    made = prepare_corpus(config, tmp_path / 'c', seed=0)
  names = [made.documents.name(i) for i in range(len(made.documents))]
  assert names
  assert not any('control' in name for name in names)
  assert any('left out as too_short' in line for line in caplog.messages)


@pytest.mark.parametrize('form', ['json', 'folder', 'model'])
def test_a_given_tokenizer_of_any_form_is_copied_and_opened_again(
  texts, llama3, tmp_path, form
):
  path, changes = llama3, {}
  if form == 'json':
    path = llama3 / 'tokenizer.json'
  if form == 'model':
    path = write_sentencepiece(tmp_path / 'given' / 'x.model', vocab_size=330)
    markers = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
    changes = {'added_tokens': markers}
  config = config_of(texts, **given(path, **changes))
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  again = open_corpus(tmp_path / 'c')
  assert fingerprints(again) == fingerprints(made)
  assert again.chat.fingerprint == made.chat.fingerprint
  tokenizer = again.tokenizer
  if form == 'model':
    assert [tokenizer.control_id(m) for m in markers] == [330, 331, 332]
  eot = tokenizer.control_id('<|eot_id|>')
  for i in range(len(again.conversations)):
    tokens, mask = read(again.conversations, i)
    assert tokens[0] == tokenizer.bos_id
    assert tokens[-1] == eot
    assert mask[-1]


def test_a_template_is_trained_into_the_tokenizer(texts, tmp_path):
  config = config_of(texts, chat_template='chatml')
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  start, end = map(made.tokenizer.control_id, ('<|im_start|>', '<|im_end|>'))
  tokens, mask = read(made.conversations, 0)
  assert tokens[0] == start
  assert np.count_nonzero(tokens == end) % 2 == 0
  assert (tokens[mask][-1]) == end
  assert made.tokenizer.control_id('<|user|>') is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'chat_template': 'skywork', 'eos': 'none'},
      r'lacks \[USER\], \[BOT\], \[',
    ),
    (
      {'eos_token': '<|eod|>'},
      r'corpus\.eos_token=<\|eod\|>: .* no such token',
    ),
    (
      {},
      r'corpus\.eos=document, but .* names no such token: set corpus\.eos_t',
    ),
    ({'vocab_size': 320, 'eos': 'none'}, r'more than corpus\.vocab_size=320'),
  ],
)
def test_a_given_tokenizer_that_will_not_do_is_refused_before_reading(
  tmp_path, changes, message
):
  special = [
    name for name in SPECIAL if name not in ('[USER]', '[BOT]', '[SEP]')
  ]
  path = write_folder(
    tmp_path / 'given', byte_level_bpe(special), bos_token='<s>'
  )
  nowhere = tmp_path / 'nowhere'  # reading it would be another error
  config = config_of(nowhere, **given(path, **changes))
  with pytest.raises((ConfigError, TokenizerError), match=message) as raised:
    prepare_corpus(config, tmp_path / 'run' / 'c', seed=0)
  assert '\n' not in str(raised.value)
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'added_tokens': ('<a>',)},
      r'^config\.added_tokens=.* set tokenizer_path',
    ),
    (
      {'eos_token': '<a>'},
      r'^config\.eos_token=<a> is for a tokenizer that is',
    ),
    (
      {'conversation_files': {'extract': {'path': 'a.jsonl'}}},
      r'^config\.conversation_files\.extract: conversations has a kind',
    ),
  ],
)
def test_settings_that_would_not_be_used_are_refused(texts, changes, message):
  with pytest.raises(ConfigError, match=message):
    config_of(texts, **changes)
