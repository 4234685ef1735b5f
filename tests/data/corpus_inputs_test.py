"""What a corpus is made from: refused by name before anything is read."""

import json

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from tests.data.made_texts import config_of

MAKE = pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])


@pytest.fixture
def refused(tmp_path):
  """The one line with which a corpus is refused before anything is written."""

  def refused(make, **changes):
    with pytest.raises(ConfigError) as raised:
      make(config_of(tmp_path / 'texts', **changes), tmp_path / 'c', seed=0)
    assert not (tmp_path / 'c').exists()
    assert not (tmp_path / 'c.partial').exists()
    assert '\n' not in str(raised.value)
    return str(raised.value)

  (tmp_path / 'texts').mkdir()
  # More than enough for an error of its own, if anybody read it.
  (tmp_path / 'texts' / 'a.txt').write_bytes(b'\xff')
  return refused


@MAKE
def test_conversation_files_are_looked_at_first(refused, make, tmp_path):
  (tmp_path / 'nothing').mkdir()
  (tmp_path / 'unknown.json').write_text('[{"question": "Hi"}]')
  (tmp_path / 'lines.txt').write_text('Hi\nHello\n')
  (tmp_path / 'empty.jsonl').touch()
  for path, message in (
    ('lines.txt', 'no conversation is in it (2 not JSON)'),
    ('empty.jsonl', 'no conversation is in it (it is empty)'),
    ('absent', 'expected a file, or a directory'),
    ('nothing', 'expected a file, or a directory'),
    ('unknown.json', 'a record of the keys question is of no known shape'),
  ):
    files = {'mine': {'path': str(tmp_path / path)}}
    line = refused(make, conversation_files=files)
    assert 'corpus.conversation_files.mine' in line
    assert message in line


@MAKE
def test_an_empty_path_is_not_the_working_directory(
  refused, make, tmp_path, monkeypatch
):
  (tmp_path / 'a.json').write_text(json.dumps({'data': ['Hi', 'Hello']}))
  monkeypatch.chdir(tmp_path)
  line = refused(make, conversation_files={'mine': {'path': ''}})
  assert line.startswith("corpus.conversation_files.mine.path='': say where")
  text = {'kind': 'text_files', 'max_chars': 10**6, 'path': str(tmp_path)}
  sources = {'text': text, 'books': {'kind': 'jsonl', 'max_chars': 10**6}}
  line = refused(make, sources=sources)
  assert line.startswith("corpus.sources.books.path='': say where its texts")


@MAKE
def test_a_field_that_is_wrong_is_named_with_its_source(
  refused, make, tmp_path
):
  source = {'kind': 'jsonl', 'max_chars': 10**6, 'path': str(tmp_path / 'no')}
  line = refused(make, sources={'books': source})
  assert line.startswith('corpus.sources.books: path=')
  assert 'no such file or directory' in line


@MAKE
def test_conversations_of_an_unknown_kind_are_refused_first(refused, make):
  line = refused(make, conversations={'rhyme': 1})
  assert "corpus.conversations: unknown kind 'rhyme', there are" in line
