"""Preparing a corpus: reproducible, all or nothing, and refused by name."""

import gzip
import json
import shutil

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import prepare
from longctx_jax.data.parts import DocumentError
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from longctx_jax.data.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.tokenizer import TokenizerError
from tests import small
from tests.data.made_texts import (
  WORDS,
  config_of,
  fingerprints,
  names_of,
  read,
)


def test_the_same_config_and_seed_give_the_same_corpus(
  texts, prepared, tmp_path
):
  again = prepare_corpus(config_of(texts), tmp_path / 'again', seed=0)
  assert fingerprints(again) == fingerprints(prepared[1])


def test_the_seed_decides_conversations_and_nothing_else(
  texts, prepared, tmp_path
):
  other = prepare_corpus(config_of(texts), tmp_path / 'other', seed=1)
  same = [
    x == y
    for x, y in zip(fingerprints(other), fingerprints(prepared[1]), strict=True)
  ]
  assert same == [True, True, True, False]


def test_a_corpus_may_be_packed_in_another_way_than_the_config_says(
  texts, prepared, tmp_path
):
  _, plain = prepared
  config = config_of(texts, compression='zstd')
  packed = prepare_corpus(config, tmp_path / 'packed', seed=0)
  assert not list((tmp_path / 'packed').rglob('places.npy'))
  for i in range(len(plain.documents)):
    for here, there in zip(
      read(packed.documents, i), read(plain.documents, i), strict=True
    ):
      assert np.array_equal(here, there)
  same = prepare_corpus(config_of(texts), tmp_path / 'packed', seed=0)
  assert fingerprints(same) == fingerprints(packed)


def test_a_prepared_corpus_is_opened_and_not_made_again(
  texts, prepared, tmp_path
):
  directory, corpus = prepared
  moved = shutil.copytree(texts, tmp_path / 'texts')
  config = config_of(moved)
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  shutil.rmtree(moved)
  assert fingerprints(prepare_corpus(config, tmp_path / 'c', seed=0)) == (
    fingerprints(made)
  )
  assert fingerprints(open_corpus(directory)) == fingerprints(corpus)


def test_documents_are_stored_between_begin_and_end(texts, prepared):
  _, corpus = prepared
  tokenizer = corpus.tokenizer
  for i, name in enumerate(names_of(corpus.documents)):
    tokens, mask = read(corpus.documents, i)
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    text = (texts / name.removeprefix('text_files/')).read_text()
    assert tokenizer.decode(tokens[1:-1]) == text
    assert mask.all()


def test_held_out_documents_are_nowhere_in_training(texts, prepared):
  _, corpus = prepared
  training, heldout = names_of(corpus.documents), names_of(corpus.heldout)
  assert training
  assert heldout
  assert sorted(training + heldout) == sorted(
    f'text_files/{path.name}' for path in texts.iterdir()
  )
  # Nor in conversations: no 60 characters of them, in any place.
  held = {
    text[i : i + 60]
    for document in range(len(heldout))
    for text in [corpus.tokenizer.decode(read(corpus.heldout, document)[0])]
    for i in range(len(text) - 60)
  }
  decoded = [
    corpus.tokenizer.decode(read(corpus.conversations, i)[0])
    for i in range(len(corpus.conversations))
  ]
  assert not any(
    text[i : i + 60] in held for text in decoded for i in range(len(text) - 60)
  )


def test_the_tokenizer_learns_from_training_documents_alone(texts, tmp_path):
  held = tmp_path / 'texts'
  shutil.copytree(texts, held)
  made = prepare_corpus(config_of(held), tmp_path / 'a', seed=0)
  names = names_of(made.heldout)
  for name in names:
    path = held / name.removeprefix('text_files/')
    path.write_text('zebra quagga ' * (path.stat().st_size // 13))
  other = prepare_corpus(config_of(held), tmp_path / 'b', seed=0)
  assert names_of(other.heldout) == names
  tokenizer = SentencePieceTokenizer(tmp_path / 'a' / 'tokenizer.model')
  assert other.tokenizer.fingerprint == tokenizer.fingerprint


def test_conversations_too_long_to_train_on_are_left_out(texts, tmp_path):
  config = config_of(texts, max_conversation_len=300)
  lengths = prepare_corpus(config, tmp_path / 'c', seed=0).conversations.lengths
  assert 0 < len(lengths) < 40
  assert lengths.max() <= 300


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    # Fails while the last of the three stores is being written.
    ({'conversations': {'extract': 9, 'poem': 1}}, ConfigError, "'poem'"),
    ({'max_conversation_len': 5}, ConfigError, r'_len=5 tokens \(20 are long'),
    ({'conversations': {'define': 9}}, ConfigError, 'need a source of kind st'),
    ({'vocab_size': 60_000}, TokenizerError, 'too little text'),
    ({'heldout_frac': 1e-9}, ConfigError, '40 training and 0 held-out'),
    ({'heldout_frac': 1 - 1e-9}, ConfigError, '0 training and 40 held-out'),
  ],
)
def test_a_run_that_fails_leaves_nothing_and_one_clear_line(
  texts, tmp_path, changes, error, message
):
  with pytest.raises(error, match=message) as raised:
    prepare_corpus(config_of(texts, **changes), tmp_path / 'c', seed=0)
  assert '\n' not in str(raised.value)
  assert list(tmp_path.iterdir()) == []


def test_texts_too_short_to_use_are_an_empty_corpus(tmp_path):
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts' / 'a.txt').write_text('too short')
  config = config_of(tmp_path / 'texts')
  with pytest.raises(ConfigError, match='empty corpus: 0 training'):
    prepare_corpus(config, tmp_path / 'c', seed=0)


def test_what_a_killed_run_left_is_not_taken_for_a_corpus(
  texts, prepared, tmp_path
):
  left = tmp_path / 'c.partial'
  shutil.copytree(prepared[0], left)
  shutil.rmtree(left / 'conversations')
  (left / 'rubbish').write_text('x')
  made = prepare_corpus(config_of(texts), tmp_path / 'c', seed=0)
  assert fingerprints(made) == fingerprints(prepared[1])
  assert [path.name for path in tmp_path.iterdir()] == ['c']
  assert not (tmp_path / 'c' / 'rubbish').exists()


@pytest.mark.parametrize(
  ('changes', 'seed', 'says'),
  [
    (
      {'heldout_frac': 0.3},
      0,
      r'\(corpus\.heldout_frac is 0\.2 there, 0\.3 here\)',
    ),
    ({}, 1, r'\(seed is 0 there, 1 here\)'),
  ],
)
def test_a_corpus_of_other_settings_is_refused(
  texts, prepared, changes, seed, says
):
  directory, _ = prepared
  with pytest.raises(ConfigError, match=f'other corpus settings {says}') as e:
    prepare_corpus(config_of(texts, **changes), directory, seed=seed)
  assert str(directory) in str(e.value)
  assert directory.exists()


def test_a_directory_that_holds_something_else_is_named_and_left(
  texts, tmp_path
):
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c' / 'notes.txt').write_text('mine')
  with pytest.raises(StoreError, match=r'c holds no corpus: give the direc'):
    prepare_corpus(config_of(texts), tmp_path / 'c', seed=0)
  assert (tmp_path / 'c' / 'notes.txt').exists()
  for make in (prepare_corpus, prepare_at_scale):
    with pytest.raises(StoreError, match=r'notes\.txt holds no corpus: give'):
      make(config_of(texts), tmp_path / 'c' / 'notes.txt', seed=0)


def test_stores_of_another_tokenizer_are_refused(prepared, tmp_path):
  directory, made = prepared
  mixed = shutil.copytree(directory, tmp_path / 'mixed')
  other = train_sentencepiece(WORDS * 9, 300, mixed / 'tokenizer.model')
  with pytest.raises(StoreError) as raised:
    open_corpus(mixed)
  assert made.tokenizer.fingerprint in str(raised.value)
  assert other.fingerprint in str(raised.value)
  assert '\n' not in str(raised.value)


def test_a_given_tokenizer_is_kept_and_must_not_be_larger(
  texts, prepared, tmp_path
):
  path = prepared[0] / 'tokenizer.model'
  config = config_of(texts, tokenizer_path=str(path), vocab_size=500)
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  assert made.tokenizer.fingerprint == prepared[1].tokenizer.fingerprint
  assert made.tokenizer.vocab_size == 400
  config = config_of(texts, tokenizer_path=str(path), vocab_size=399)
  with pytest.raises(ConfigError, match=r'has 400 tokens.*vocab_size=399'):
    prepare_corpus(config, tmp_path / 'd', seed=0)


def test_definitions_come_from_code_and_extracts_from_prose(tmp_path):
  config = small.corpus_config(conversations={'define': 40, 'extract': 10})
  made = prepare_corpus(config, tmp_path / 'c', seed=0).conversations
  assert made.domain_names == ('define', 'extract')
  assert len(set(names_of(made))) == len(made)
  config = small.corpus_config(
    sources={'code': small.CORPUS['sources']['code']},
    conversations={'extract': 10},
  )
  with pytest.raises(ConfigError, match='none is of at most'):
    prepare_corpus(config, tmp_path / 'd', seed=0)


def test_documents_are_the_same_whatever_the_batches(
  texts, prepared, tmp_path, monkeypatch
):
  monkeypatch.setattr(prepare, 'CHARS_PER_BATCH', 3000)
  again = prepare_corpus(config_of(texts), tmp_path / 'c', seed=0)
  assert fingerprints(again) == fingerprints(prepared[1])


def lengths_of(corpus):
  return np.concatenate([corpus.documents.lengths, corpus.heldout.lengths])


def test_a_corpus_is_made_of_records_as_of_files(texts, prepared, tmp_path):
  with gzip.open(tmp_path / 'a.jsonl.gz', 'wt') as file:
    for path in texts.iterdir():
      json.dump({'content': path.read_text(), 'file': path.name}, file)
      file.write('\n')
    file.write('{"content"\n')
  source = {
    'kind': 'jsonl',
    'max_chars': 10**6,
    'path': str(tmp_path / '*.gz'),
    'text_field': 'content',
    'name_field': 'file',
  }
  config = config_of(texts, sources={'text': source})
  made = prepare_corpus(config, tmp_path / 'c', seed=0)
  names = [
    store.name(i)
    for store in (made.documents, made.heldout)
    for i in range(len(store))
  ]
  assert sorted(names) == sorted(
    f'jsonl/{path.name}' for path in texts.iterdir()
  )
  assert lengths_of(made).sum() == pytest.approx(
    lengths_of(prepared[1]).sum(), rel=0.1
  )
  source['on_problem'] = 'stop'
  config = config_of(texts, sources={'text': source})
  with pytest.raises(DocumentError, match=r'a.jsonl.gz, line 41: not JSON'):
    prepare_corpus(config, tmp_path / 'd', seed=0)


def test_doubles_in_any_source_are_left_out_if_asked(texts, tmp_path, caplog):
  sources = {}
  for domain, prefix in (('text', ''), ('again', '1')):
    sources[domain] = {
      'kind': 'text_files',
      'max_chars': 10**6,
      'path': str(texts / f'{prefix}*.txt'),
    }
  config = config_of(texts, sources=sources)
  made = prepare_corpus(config, tmp_path / 'a', seed=0)
  assert len(lengths_of(made)) == 40 + 11
  config = config_of(texts, sources=sources, filters={'deduplicate': True})
  with caplog.at_level('INFO'):
    made = prepare_corpus(config, tmp_path / 'b', seed=0)
  assert len(lengths_of(made)) == 40
  for store in (made.documents, made.heldout):
    assert store.domain_names == ('text',)
  assert 'corpus: 11 documents left out as doubles of others' in caplog.messages


def test_lengths_are_cut_or_dropped_as_the_filters_say(
  texts, prepared, tmp_path, caplog
):
  lengths = lengths_of(prepared[1])
  limit = int(np.median(lengths))
  filters = {'max_tokens': limit}
  config = config_of(texts, filters=filters)
  cut = prepare_corpus(config, tmp_path / 'a', seed=0)
  np.testing.assert_array_equal(
    np.sort(lengths_of(cut)), np.sort(np.minimum(lengths, limit))
  )
  filters['too_long'] = 'drop'
  with caplog.at_level('INFO'):
    dropped = prepare_corpus(
      config_of(texts, filters=filters), tmp_path / 'b', seed=0
    )
  np.testing.assert_array_equal(
    np.sort(lengths_of(dropped)), np.sort(lengths[lengths <= limit])
  )
  assert any('left out as too_long' in message for message in caplog.messages)
  config = config_of(texts, filters={'min_tokens': limit})
  least = prepare_corpus(config, tmp_path / 'd', seed=0)
  np.testing.assert_array_equal(
    np.sort(lengths_of(least)), np.sort(lengths[lengths >= limit])
  )
  config = config_of(texts, filters={'min_tokens': 10**6})
  with pytest.raises(ConfigError, match='a length of 1000000 to any tokens'):
    prepare_corpus(config, tmp_path / 'e', seed=0)
