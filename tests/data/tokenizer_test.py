"""Tokenizer: exact round trips, symbols that text cannot forge, errors."""

import pickle
import time

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.corpus_config import TextSource
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.documents import read_documents
from longctx_jax.data.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)
from longctx_jax.data.tokenizer import TokenizerError
from tests.data.small_tokenizers import write_sentencepiece

VOCAB_SIZE = 700


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
  source = TextSource('stdlib', 1_000_000)
  documents = read_documents(source, 'code', tmp_path_factory.getbasetemp())
  return [document.text for document in documents]


@pytest.fixture(scope='session')
def model_path(texts, tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'new' / 'tokenizer.model'
  train_sentencepiece(texts, VOCAB_SIZE, path)
  return path


@pytest.fixture(scope='session')
def tokenizer(model_path):
  return SentencePieceTokenizer(model_path)


@given(st.text())
@example('  two\t\ttabs \n\n\n    def f():\r\n\treturn 1  \n')
@example('▁ \u2581a\u2581\u2581 b')
@example('\x00\x01\x1f\x7f\ufeff\u2028\u3000')
@example('😀👩\u200d👩\u200d👧 e\u0301 ﬁ')
@example('<0x0A><unk></s>')
def test_any_text_round_trips_exactly(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == 'int32'
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
  ('given', 'expected'), [('3', 3), ('0', -1), ('', -1), ('many', -1)]
)
def test_a_batch_takes_as_many_threads_as_it_may(
  tokenizer, monkeypatch, given, expected
):
  asked = []

  def encode(self, texts, num_threads):
    asked.append(num_threads)
    return [[]] * len(texts)

  monkeypatch.setenv('RAYON_NUM_THREADS', given)
  monkeypatch.setattr(sentencepiece.SentencePieceProcessor, 'encode', encode)
  tokenizer.encode_batch(['a', 'b'])
  assert asked == [expected]


@given(
  st.lists(
    st.sampled_from(
      ['<|user|>', '<|assistant|>', '<|end|>', '<pad>', '</s>', '<s>', ' ', 'a']
    )
  )
)
def test_text_cannot_forge_control_symbols(tokenizer, parts):
  text = ''.join(parts)
  markers = map(tokenizer.control_id, TEMPLATES['plain'].control)
  pad_id = tokenizer.control_id('<pad>')
  control_ids = {pad_id, tokenizer.bos_id, tokenizer.eos_id, *markers}
  assert len(control_ids) == 6
  assert pad_id == 0
  assert control_ids.isdisjoint(tokenizer.encode(text).tolist())
  assert tokenizer.decode(sorted(control_ids)) == ''


def test_newline_digits_and_indents_have_their_own_pieces(
  tokenizer, model_path
):
  newline, indent = tokenizer.encode('\n'), tokenizer.encode(' ' * 8)
  # Not the byte piece <0x0A>, which would do for decoding.
  processor = sentencepiece.SentencePieceProcessor(str(model_path))
  assert processor.id_to_piece(newline.tolist()) == ['\n']
  assert len(newline) == len(indent) == 1
  assert tokenizer.encode('\n' + ' ' * 8).tolist() == [*newline, *indent]
  assert len(tokenizer.encode('1000000')) == 7


def test_megabyte_is_encoded_in_seconds(tokenizer, texts):
  text = ''.join(texts)
  text *= 1_000_000 // len(text) + 1
  start = time.perf_counter()
  tokenizer.encode(text[:1_000_000])
  # About 0.4 s on one core; a tokenizer of quadratic time takes minutes.
  assert time.perf_counter() - start < 10


def test_training_is_silent_and_reproducible(tmp_path, capfd):
  texts = ['<|user|> says \x00 1 2 3 ▁ <unk>\n' * 3, 'x' * 20_000, '', '\n']
  texts += [f'def function_{i}(a, b):\n  return a' for i in range(500)]
  first = train_sentencepiece(texts, 300, tmp_path / 'a.model')
  again = train_sentencepiece(texts, 300, tmp_path / 'b.model')
  assert capfd.readouterr() == ('', '')
  a, b = ((tmp_path / f'{name}.model').read_bytes() for name in 'ab')
  assert a == b
  assert first.vocab_size == 300
  assert first.fingerprint == again.fingerprint
  assert len(first.fingerprint) == 12
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.model', 'b.model']
  other = train_sentencepiece(texts, 299, tmp_path / 'c.model')
  assert other.fingerprint != first.fingerprint


def test_long_lines_are_trained_on(tmp_path):
  # One line beyond the trainer's limit is all there is to learn from.
  path = tmp_path / 'a.model'
  train_sentencepiece(['needle haystack ' * 1000], 290, path)
  tokenizer = SentencePieceTokenizer(path)
  assert len(tokenizer.encode('needle haystack')) <= 2


def test_too_little_text_says_what_vocab_size_would_do(tmp_path):
  with pytest.raises(TokenizerError, match='too little text') as raised:
    train_sentencepiece(['hello world'], 2048, tmp_path / 'a.model')
  message = str(raised.value)
  assert 'corpus.vocab_size=2048' in message
  possible = int(message.split('corpus.vocab_size=')[2].split(' ')[0])
  tokenizer = train_sentencepiece(
    ['hello world'], possible, tmp_path / 'a.model'
  )
  assert tokenizer.vocab_size == possible


def test_too_small_vocab_size_says_what_would_do(tmp_path, texts):
  with pytest.raises(TokenizerError, match='vocab_size=200 is too') as raised:
    train_sentencepiece(texts, 200, tmp_path / 'a.model')
  needed = int(str(raised.value).split('corpus.vocab_size=')[2].split(' ')[0])
  assert train_sentencepiece(texts, needed, tmp_path / 'a.model')


def test_no_text_to_train_on_is_said(tmp_path):
  with pytest.raises(TokenizerError, match='no text to train'):
    train_sentencepiece(['', '\n'], 300, tmp_path / 'a.model')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('content', [b'', b'not a model', b'\x00' * 100])
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'a.model'
  path.write_bytes(content)
  with pytest.raises(TokenizerError, match=r'a\.model is not a SentencePiece'):
    SentencePieceTokenizer(path)


def test_missing_file_is_named(tmp_path):
  with pytest.raises(TokenizerError, match=r'a\.model: No such file'):
    SentencePieceTokenizer(tmp_path / 'a.model')


def test_pickled_copy_encodes_the_same(tokenizer):
  copy = pickle.loads(pickle.dumps(tokenizer))
  text = 'for i in range(10):\n  pass ▁'
  assert copy.encode(text).tolist() == tokenizer.encode(text).tolist()
  assert copy.fingerprint == tokenizer.fingerprint


@given(st.lists(st.text() | st.sampled_from(['▁', '</s>', '<|end|>'])))
def test_a_batch_is_encoded_as_its_texts(tokenizer, texts):
  batch = tokenizer.encode_batch(texts)
  assert all(ids.dtype == 'int32' for ids in batch)
  assert [ids.tolist() for ids in batch] == [
    tokenizer.encode(text).tolist() for text in texts
  ]


def test_models_of_others_are_opened_as_they_are(tmp_path):
  path = write_sentencepiece(
    tmp_path / 'a.model',
    byte_fallback=False,
    vocab_size=60,
    control_symbols=['[INST]'],
    bos_id=-1,
  )
  tokenizer = SentencePieceTokenizer(path)
  processor = sentencepiece.SentencePieceProcessor(str(path))
  for text in ('Hello ▁ there [INST]', ' ¿', ''):
    assert tokenizer.encode(text).tolist() == processor.encode(text)
  assert tokenizer.control_id('[INST]') == processor.piece_to_id('[INST]')
  assert tokenizer.control_id('<|user|>') is None
  assert tokenizer.bos_id is None
  assert tokenizer.eos_id == processor.eos_id()


SYMBOLS = ['[USER]', '<tool>']


@pytest.fixture(scope='module')
def defined(tmp_path_factory):
  """A model whose `SYMBOLS` text produces: they are user-defined."""
  path = tmp_path_factory.mktemp('defined') / 'a.model'
  return write_sentencepiece(path, user_defined_symbols=SYMBOLS)


@example('[USER]')
@example('a [U\x08SER] b')
@given(
  st.lists(
    st.sampled_from([*SYMBOLS, '</s>', '[U', 'SER]', ' ', 'a', '<0x0A>'])
    | st.text()
  ).map(''.join)
)
def test_symbols_that_text_could_produce_are_guarded_if_named(defined, text):
  raw = sentencepiece.SentencePieceProcessor(str(defined))
  [user, tool] = map(raw.piece_to_id, SYMBOLS)
  assert raw.encode('[USER]')[-1] == user
  tokenizer = SentencePieceTokenizer(defined, control=['[USER]'])
  for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
    assert {user, tokenizer.bos_id, tokenizer.eos_id}.isdisjoint(ids.tolist())
    # Other characters may be normalised to it, such as '[U\x08SER]'.
    as_text = SentencePieceTokenizer(defined).encode(text).tolist()
    if user not in as_text:
      assert ids.tolist() == as_text
  # The other one was not named, and stays text.
  assert tool in tokenizer.encode(f'{text} <tool>')
  assert tokenizer.control_id('[USER]') == user
  assert tokenizer.control_id('<tool>') is None
  assert tokenizer.decode([user]) == ''


def test_added_tokens_have_ids_behind_the_pieces(model_path, tokenizer):
  added = {'[USER]': VOCAB_SIZE, '[SEP]': VOCAB_SIZE + 2}
  more = SentencePieceTokenizer(
    model_path, added_tokens={**added, '<s>': 2, '\n': 9}, eos_token='[SEP]'
  )
  # Such lists name the model's own as well: those stay what they are.
  assert more.control_id('\n') is None
  assert more.vocab_size == VOCAB_SIZE + 3
  assert more.control_id('[USER]') == VOCAB_SIZE
  assert more.bos_id == tokenizer.bos_id
  assert more.eos_id == VOCAB_SIZE + 2
  text = 'a [USER] b'
  assert more.encode(text).tolist() == tokenizer.encode(text).tolist()
  with_markers = [VOCAB_SIZE, *more.encode(text), VOCAB_SIZE + 2]
  assert more.decode(with_markers) == text
  assert more.fingerprint != tokenizer.fingerprint
