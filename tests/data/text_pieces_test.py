"""Texts cut into pieces have the tokens of the whole, or are not cut."""

import itertools
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from longctx_jax.data import hf_tokenizer, text_pieces
from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.data.text_pieces import may_be_cut, pieces
from tests.data.small_tokenizers import LLAMA3_SPLIT, TEXTS

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Of the tokenizer.json, pre_tokenizer, of the models named.
QWEN2_SPLIT = LLAMA3_SPLIT.replace('{1,3}', '')
QWEN35_SPLIT = QWEN2_SPLIT.replace(r'?\p{L}+', r'?[\p{L}\p{M}]+').replace(
  r'[^\s\p{L}\p{N}]', r'[^\s\p{L}\p{M}\p{N}]'
)
GPT4O_SPLIT = (
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*'
  rf'[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{CONTRACTIONS}?|'
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+'
  rf'[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{CONTRACTIONS}?|'
  r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
TEKKEN_SPLIT = GPT4O_SPLIT.replace(f'{CONTRACTIONS}?', '').replace('{1,3}', '')


def splits(pattern):
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUT = {
  'gpt2': GPT2,
  'smollm2': pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2]),
  'digits_together': pre_tokenizers.Sequence([pre_tokenizers.Digits(), GPT2]),
  'llama3': splits(LLAMA3_SPLIT),
  'qwen2': splits(QWEN2_SPLIT),
  'qwen35': splits(QWEN35_SPLIT),
  'gpt4o': splits(GPT4O_SPLIT),
  'tekken': splits(TEKKEN_SPLIT),
}
# Some of every class that a pattern tells apart, and what may be cut.
ALPHABET = [
  *"aZs'tTreLd019_-/.,(!<>",
  *' \n\r\t\x0b\x1c\x85\xa0\u180e\u2003\u2028\u200b\u3000',
  *'\u6211\u4e00\u306f\u30ab\u3001\u3002\uff0c\u3099\uf900',
  *'\xe9e\u0301\u0345\xb2\u2167\u0660\u017f\u212a\xdf\u01c5\U0001f600',
]
NASTY = st.lists(
  st.sampled_from(ALPHABET + [' '] * 6) | st.text(max_size=2), max_size=30
).map(''.join)


def made(pre_tokenizer, normalizer=None, added=()):
  """A tokenizer with merges of all that its splits let merge."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizer
  if normalizer:
    tokenizer.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=900,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  mixed = [a + b + c for a in ALPHABET for b in ' s\n\u3001' for c in ALPHABET]
  tokenizer.train_from_iterator([*TEXTS * 5, *mixed], trainer)
  tokenizer.add_tokens(list(added))
  return tokenizer


def description(tokenizer):
  return json.loads(tokenizer.to_str())


def is_cut(tokenizer):
  added = tokenizer.get_added_tokens_decoder().values()
  return may_be_cut(description(tokenizer), added)


def reopened(tokenizer, tmp_path):
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  return HuggingFaceTokenizer(tmp_path / 'tokenizer.json')


def whole(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope='module', params=CUT)
def pair(request, tmp_path_factory):
  """A tokenizer of the library, and ours of the same file."""
  added = ['<tool_call>', '\n\n', '  ', AddedToken('<pad>', special=True)]
  raw = made(CUT[request.param], normalizers.NFC(), added)
  raw.encode_special_tokens = True
  return raw, reopened(raw, tmp_path_factory.mktemp('pieces'))


@pytest.fixture
def short(monkeypatch):
  """Pieces so short that texts are cut wherever they may be."""
  monkeypatch.setattr(text_pieces, 'PIECE_CHARS', 1)


def cut_everywhere(text):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_pieces, 'PIECE_CHARS', 1)
    return list(pieces(text))


@given(text=NASTY)
def test_any_text_has_the_tokens_of_the_whole(pair, text):
  raw, ours = pair
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_pieces, 'PIECE_CHARS', 1)
    assert ours.encode(text).tolist() == whole(raw, text)


def test_pieces_end_where_splits_of_the_whole_end(pair):
  raw, _ = pair
  # Any three neighbours, at any place that a text may be cut at.
  classes = "as'1./\u0301 \n\t\u6211\u3042\u3001\u3002\uff0c\u017f"
  triples = itertools.product(classes, repeat=3)
  text = ' '.join(map(''.join, triples))
  find = raw.pre_tokenizer.pre_tokenize_str
  of_pieces = [s for part in cut_everywhere(text) for s, _ in find(part)]
  assert of_pieces == [s for s, _ in find(text)]


@given(text=NASTY)
def test_pieces_make_the_text_and_end_before_spaces_and_stops(text):
  parts = cut_everywhere(text)
  assert ''.join(parts) == text
  for before, after in itertools.pairwise(parts):
    assert not before[-1].isspace()
    assert after[0] in ' \u3001\u3002\uff0c'


def test_all_known_tokenizers_are_cut(pair):
  raw, ours = pair
  assert is_cut(raw)
  text = 'So he went, and then,\n  he said:\u6211\u4eec\u3001\u3002 ' * 3000
  assert len(list(pieces(text))) > 20
  assert ours.encode(text).tolist() == whole(raw, text)


def test_pieces_are_long_and_no_longer_than_it_takes():
  assert list(pieces('')) == ['']
  assert list(pieces('ab cd ' * 100)) == ['ab cd ' * 100]
  lengths = [len(part) for part in pieces('word ' * 4000)]
  assert lengths[:-1] == [text_pieces.PIECE_CHARS + 4] + (
    [text_pieces.PIECE_CHARS] * (len(lengths) - 2)
  )
  without = 'x' * 20_000
  assert list(pieces(without)) == [without]
  assert len(list(pieces(f'{without} {without}'))) == 2


def test_the_library_gets_a_long_text_a_part_at_a_time(
  pair, monkeypatch, short
):
  raw, ours = pair
  monkeypatch.setattr(hf_tokenizer, '_CHARS_PER_CALL', 50)
  calls = []

  class Library:
    def encode_batch_fast(self, batch, **options):
      calls.append(sum(map(len, batch)))
      return raw.encode_batch_fast(batch, **options)

  monkeypatch.setattr(ours, '_tokenizer', Library())
  texts = ['Hello there, ' * 50, '', 'how are you?' * 20]
  batch = ours.encode_batch(texts)
  assert [ids.tolist() for ids in batch] == [whole(raw, t) for t in texts]
  assert len(calls) > 10
  assert max(calls) < 60


def other_pre_tokenizers():
  return {
    'none': None,
    'metaspace': pre_tokenizers.Metaspace(),
    'a_prefix': pre_tokenizers.ByteLevel(add_prefix_space=True),
    'nothing_ends_there': pre_tokenizers.Digits(),
    'bytes_alone': pre_tokenizers.ByteLevel(False, use_regex=False),
    'a_pattern_of_its_own': splits(LLAMA3_SPLIT + r'|\w+ \w+'),
    'another_order_of_steps': pre_tokenizers.Sequence(
      [GPT2, pre_tokenizers.Digits()]
    ),
    'what_matches_is_left_out': pre_tokenizers.Split(
      tokenizers.Regex(LLAMA3_SPLIT), 'removed'
    ),
    'what_does_not_match_is_split': pre_tokenizers.Split(
      tokenizers.Regex(LLAMA3_SPLIT), 'isolated', invert=True
    ),
    'a_string': pre_tokenizers.Split(LLAMA3_SPLIT, 'isolated'),
    'no_words': splits(r'\p{N}|\s+'),
    'no_white_space': splits(r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}'),
  }


@pytest.mark.parametrize('name', other_pre_tokenizers())
def test_tokenizers_that_are_not_known_get_texts_whole(name):
  raw = tokenizers.Tokenizer(models.BPE())
  if other_pre_tokenizers()[name]:
    raw.pre_tokenizer = other_pre_tokenizers()[name]
  assert not is_cut(raw)


@pytest.mark.parametrize(
  ('pre_tokenizer', 'text'),
  [
    (pre_tokenizers.Metaspace(), 'Hello there, how are you'),
    (pre_tokenizers.ByteLevel(add_prefix_space=True), 'how\u3001how are you'),
    (splits(LLAMA3_SPLIT.replace('|', r'|\w+ \w+|', 1)), 'Hello there how are'),
  ],
)
def test_where_a_cut_would_change_the_tokens_there_is_none(
  pre_tokenizer, text, tmp_path, short
):
  raw = made(pre_tokenizer)
  ours = reopened(raw, tmp_path)
  assert ours.encode(text).tolist() == whole(raw, text)


@pytest.mark.parametrize(
  'normalizer',
  [
    normalizers.Lowercase(),
    normalizers.NFKC(),
    normalizers.Replace('a b', 'c'),
    normalizers.Prepend('x'),
    normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
  ],
)
def test_texts_that_are_changed_first_are_not_cut(normalizer, tmp_path, short):
  raw = made(GPT2, normalizer)
  assert not is_cut(raw)
  ours = reopened(raw, tmp_path)
  text = ' how a b and a b there '
  assert ours.encode(text).tolist() == whole(raw, text)


@pytest.mark.parametrize(
  ('token', 'text'),
  [
    (AddedToken('how are'), 'so how are you'),
    (AddedToken('how', rstrip=True), 'so how are you'),
    (AddedToken('are', lstrip=True), 'so how are you'),
    (AddedToken('are', single_word=True), 'so how are you'),
    (AddedToken('\uf900\u3001', normalized=True), 'so \u8c48\u3001 you'),
  ],
)
def test_added_tokens_that_reach_across_cuts_forbid_them(
  token, text, tmp_path, short
):
  raw = made(GPT2, normalizers.NFC(), [token])
  assert not is_cut(raw)
  ours = reopened(raw, tmp_path)
  assert ours.encode(text).tolist() == whole(raw, text)
  assert raw.token_to_id(token.content) in ours.encode(text)


def test_special_tokens_may_strip_spaces_for_they_are_text(tmp_path, short):
  mask = AddedToken('<mask>', lstrip=True, rstrip=True, special=True)
  raw = made(GPT2)
  raw.add_special_tokens([mask])
  assert is_cut(raw)
  raw.encode_special_tokens = True
  text = 'so <mask> you'
  assert reopened(raw, tmp_path).encode(text).tolist() == whole(raw, text)


def test_special_tokens_that_reach_across_cuts_forbid_them(tmp_path, short):
  raw = made(GPT2, added=[AddedToken('are', normalized=False)])
  raw.add_special_tokens(['how are'])
  assert not is_cut(raw)
  raw.encode_special_tokens = True
  ids = reopened(raw, tmp_path).encode('so how are you, are you').tolist()
  assert ids == whole(raw, 'so how are you, are you')
  # That in the special token is hidden by it.
  assert ids.count(raw.token_to_id('are')) == 1


def other_models():
  vocab = ['[UNK]', *ALPHABET, 'how', '\u0120are', '##w', '\u0120', 'o', 'h']
  ids = {word: i for i, word in enumerate(dict.fromkeys(vocab))}
  return [
    models.WordLevel(ids, unk_token='[UNK]'),
    models.WordPiece(ids, unk_token='[UNK]'),
    models.Unigram([(word, -float(i)) for word, i in ids.items()], 0, False),
  ]


@pytest.mark.parametrize(
  'model', other_models(), ids=lambda m: type(m).__name__
)
def test_the_model_behind_the_splits_makes_no_difference(
  model, tmp_path, short
):
  raw = tokenizers.Tokenizer(model)
  raw.pre_tokenizer = GPT2
  assert is_cut(raw)
  text = 'how are you, how\u3001 how  are\n you 12 how '
  ids = reopened(raw, tmp_path).encode(text).tolist()
  assert ids == whole(raw, text)
  assert len(set(ids)) > 2


def test_a_later_step_may_end_splits_at_cuts(tmp_path, short):
  steps = [
    pre_tokenizers.Split(tokenizers.Regex(r'\p{N}{1,3}'), 'isolated'),
    *splits(LLAMA3_SPLIT),
  ]
  raw = made(pre_tokenizers.Sequence(steps))
  assert is_cut(raw)
  text = 'so 1234 are\u3001 you,  12345\n you '
  assert reopened(raw, tmp_path).encode(text).tolist() == whole(raw, text)


def test_older_files_do_not_name_the_pattern_of_their_bytes(tmp_path, short):
  raw = made(GPT2)
  content = description(raw)
  del content['pre_tokenizer']['use_regex']
  assert may_be_cut(content, ())
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  ours = HuggingFaceTokenizer(tmp_path / 'tokenizer.json')
  text = 'so how are\u3001 you,  12345\n you '
  assert ours.encode(text).tolist() == whole(raw, text)
