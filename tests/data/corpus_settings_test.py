"""Settings of a corpus: those of its manifest, whichever fields it knew."""

import json
import shutil

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data import store_format
from longctx_jax.data.corpus_settings import corpus_settings, settings_there
from longctx_jax.data.prepare import prepare_corpus
from tests.data.made_texts import config_of, fingerprints


def without(settings, *path):
  """A copy without the field at `path`."""
  settings = json.loads(json.dumps(settings))
  section = settings
  for key in path[:-1]:
    section = section[key]
  del section[path[-1]]
  return settings


@pytest.fixture
def older(prepared, tmp_path):
  """The corpus of `prepared`, by a program that knew fewer fields."""
  directory = shutil.copytree(prepared[0], tmp_path / 'older')
  for path in directory.glob('*/manifest.json'):
    manifest = json.loads(path.read_text())
    for field in (('filters',), ('sources', 'text', 'line_ends')):
      manifest['settings'] = without(manifest['settings'], 'corpus', *field)
    manifest['checksum'] = store_format._manifest_checksum(manifest)
    path.write_text(json.dumps(manifest))
  return directory


def test_a_corpus_older_than_a_field_is_that_of_its_default(
  texts, prepared, older
):
  with pytest.raises(ConfigError, match=r'vocab_size is 400 there, 401 here'):
    prepare_corpus(config_of(texts, vocab_size=401), older, seed=0)
  filters = {'filters': {'max_tokens': 700}}
  with pytest.raises(ConfigError, match=r'max_tokens is 0 there, 700 here'):
    prepare_corpus(config_of(texts, **filters), older, seed=0)
  expected = fingerprints(prepared[1])
  made = prepare_corpus(config_of(texts), older, seed=0)
  assert fingerprints(made) == expected
  config = config_of(texts, prepared=str(older))
  assert fingerprints(prepare_corpus(config, older, seed=0)) == expected


def test_settings_of_fields_that_are_gone_are_as_they_are(texts):
  settings = corpus_settings(config_of(texts), 3)
  assert settings_there(settings) == settings
  older = without(settings, 'corpus', 'sources', 'text', 'line_ends')
  assert settings_there(older) == settings
  gone = {**older, 'corpus': {**older['corpus'], 'gone': 1}}
  assert settings_there(gone) == gone
  for manifest in ({}, {'max_chars': 7}, {'corpus': settings['corpus']}):
    assert settings_there(manifest) == manifest
