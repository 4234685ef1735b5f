"""Streamed text: never taken back, whole characters, cut at stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from longctx_jax.text_stream import TextStream
from tests.data.small_tokenizers import byte_level_bpe, write_sentencepiece

# Characters of 1 to 4 bytes; few enough that stop strings occur.
TEXT = st.text('ab \u00e9\u20ac\U0001f600', max_size=12)
STOPS = st.lists(st.text('ab \u20ac', min_size=1, max_size=3), max_size=3)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """Bytes and pairs of bytes: a character may take several tokens."""
  path = tmp_path_factory.mktemp('hf') / 'tokenizer.json'
  byte_level_bpe().save(str(path))
  return HuggingFaceTokenizer(path)


def blocks_of(ids, sizes):
  """`ids` cut into blocks of these sizes, and the rest."""
  for size in sizes:
    yield ids[:size]
    ids = ids[size:]
  yield ids


def stream(tokenizer, prompt, ids, sizes=(), stops=()):
  """(pieces, the stream) of ids that come in blocks."""
  text = TextStream(tokenizer, prompt, stops)
  pieces = [text.add(block) for block in blocks_of(ids, sizes)]
  return [*pieces, text.end()], text


def plain_stop(tokenizer, ids, stops):
  """(text, tokens needed): token by token, until a stop string is there."""
  for count in range(1, len(ids) + 1):
    text = tokenizer.decode(ids[:count])
    found = [
      (text.index(stop) + len(stop), text.index(stop))
      for stop in stops
      if stop in text
    ]
    if found:
      return text[: min(found)[1]], count
  return tokenizer.decode(ids), None


@given(TEXT, TEXT, st.lists(st.integers(0, 3), max_size=12))
def test_pieces_join_to_the_text_and_hold_whole_characters(
  tokenizer, before, text, sizes
):
  prompt, ids = tokenizer.encode(before), tokenizer.encode(text)
  pieces, _ = stream(tokenizer, prompt, ids, sizes)
  assert ''.join(pieces) == text
  assert not any('\ufffd' in piece for piece in pieces)


@given(TEXT, STOPS, st.lists(st.integers(0, 3), max_size=12))
def test_the_text_ends_before_a_stop_string_however_tokens_come(
  tokenizer, text, stops, sizes
):
  ids = tokenizer.encode(text)
  expected, needed = plain_stop(tokenizer, ids, stops)
  pieces, streamed = stream(tokenizer, (), ids, sizes, stops)
  assert ''.join(pieces) == expected
  assert streamed.stopped_after == needed


def test_text_comes_as_soon_as_it_is_certain(tokenizer):
  text = TextStream(tokenizer, (), ('stop', 'xyz'))
  said = 'a \u20ac st st\u00e9 sto'
  pieces = [text.add([i]) for i in tokenizer.encode(said)]
  #        '     a'  ' '  the three bytes of the euro
  assert ''.join(pieces) == 'a \u20ac st st\u00e9 '
  assert text.add(tokenizer.encode('p it')) == ''
  assert text.end() == ''
  assert text.add(tokenizer.encode('more')) == ''


def test_of_stop_strings_in_one_token_the_first_to_end_counts(tokenizer):
  """As if characters came one by one."""
  texts = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
  said = next(text for text in texts if len(set(text)) > 2)
  ids = tokenizer.encode(said)
  assert len(ids) == 1
  for stops in ((said[1], said), (said, said[1])):
    pieces, _ = stream(tokenizer, (), ids, (), stops)
    assert ''.join(pieces) == said[0]


def test_bytes_that_become_no_character_are_shown_at_the_end(tokenizer):
  euro = tokenizer.encode('\u20ac')
  text = TextStream(tokenizer, ())
  assert text.add([*tokenizer.encode('a'), *euro[:1]]) == 'a'
  assert text.end() == '\ufffd'
  # In the middle they are known to be none.
  text = TextStream(tokenizer, ())
  assert text.add([*euro[:1], *tokenizer.encode('a')]) == '\ufffda'


def test_a_character_begun_in_the_prompt_is_shown_whole(tokenizer):
  euro = tokenizer.encode('\u20ac')
  assert len(euro) > 1
  prompt = [*tokenizer.encode('a'), *euro[:1]]
  pieces, _ = stream(tokenizer, prompt, euro[1:])
  assert ''.join(pieces) == '\u20ac'


def test_a_space_that_begins_the_continuation_is_kept(tmp_path):
  """SentencePiece drops that of a text; a continuation is none."""
  tokenizer = SentencePieceTokenizer(write_sentencepiece(tmp_path / 'm.model'))
  ids = tokenizer.encode('Hello there, how are you?').tolist()
  split = next(
    k for k in range(1, len(ids)) if tokenizer.decode(ids[:k]) == 'Hello'
  )
  pieces, _ = stream(tokenizer, ids[:split], ids[split:])
  assert tokenizer.decode(ids[split:]) == 'there, how are you?'
  assert ''.join(pieces) == ' there, how are you?'
