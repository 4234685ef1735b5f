"""A corpus without conversations: made, continued, read and counted as any."""

import dataclasses
import json

import pytest

from configs.prolong import stage_64k, stage_512k
from longctx_jax.config import StageConfig
from longctx_jax.config_from_dict import ConfigError, from_config_dict
from longctx_jax.corpus_page import write_corpus_page
from longctx_jax.data.pipeline import BatchSource
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.prepare_beam import beam_runner
from longctx_jax.data.prepare_pipeline import STATISTICS, prepare_at_scale
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_verify import verify_store
from longctx_jax.data_config import DataConfig
from longctx_jax.inspection.rows import inspect_step
from tests import small
from tests.data.large_corpus import PREPARE, config_of, files_of, write_texts
from tests.data.made_texts import fingerprints

ROWS = {
  'text': {
    'kind': 'documents',
    'weight': 1.0,
    'domains': (),
    'planner': 'concat',
  }
}


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def prepared(texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  config = config_of(texts, conversations={})
  return directory, prepare_at_scale(config, directory, **PREPARE)


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_it_is_the_corpus_with_conversations_but_for_them(
  texts, tmp_path, make
):
  options = PREPARE if make is prepare_at_scale else {'seed': 0}
  made = {
    name: make(
      config_of(texts, conversations=kinds), tmp_path / name, **options
    )
    for name, kinds in (
      ('some', {'extract': 20}),
      ('none', {}),
      ('zero', {'extract': 0}),
    )
  }
  some, none, zero = (fingerprints(each) for each in made.values())
  assert none[:3] == zero[:3] == some[:3]
  assert some[3] != none[3]
  for name in ('none', 'zero'):
    assert len(made[name].conversations) == 0
    assert made[name].conversations.domain_names == ()
    # A run opens it as any other.
    assert fingerprints(open_corpus(tmp_path / name)) == none
  reports = [verify_store(path) for path in (tmp_path / 'none').glob('*/')]
  assert [(r.damage, r.documents > 0) for r in reports].count(((), True)) == 2
  assert [(r.damage, r.documents > 0) for r in reports].count(((), False)) == 1


def test_a_missing_store_is_not_taken_for_an_empty_one(texts, tmp_path):
  config = config_of(texts, conversations={})
  corpus = prepare_corpus(config, tmp_path / 'c', seed=0)
  for path in corpus.conversations.directory.iterdir():
    path.unlink()
  with pytest.raises(StoreError, match=r'cannot read the store .*/conv'):
    open_corpus(tmp_path / 'c')


def test_a_stopped_run_goes_on_without_making_its_stores_again(
  texts, prepared, tmp_path, monkeypatch
):
  config, directory = config_of(texts, conversations={}), tmp_path / 'c'

  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    # Its stores are all there, the empty one too.
    patch.setattr(
      'longctx_jax.data.prepare_pipeline.corpus_statistics',
      lambda *_, **__: stop(),
    )
    with pytest.raises(KeyboardInterrupt):
      prepare_at_scale(config, directory, **PREPARE)
  partial = tmp_path / 'c.partial' / 'conversations' / 'manifest.json'
  written = partial.stat().st_ino
  prepare_at_scale(config, directory, run=stop, **PREPARE)
  again = directory / 'conversations' / 'manifest.json'
  assert again.stat().st_ino == written
  assert files_of(directory) == files_of(prepared[0])


@pytest.mark.slow
def test_beam_makes_the_same_bytes(texts, prepared, tmp_path):
  pytest.importorskip('apache_beam')
  run = beam_runner('DirectRunner', ('direct_num_workers=2',))
  config = config_of(texts, conversations={})
  prepare_at_scale(config, tmp_path / 'c', run=run, **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])


def test_its_statistics_say_that_there_are_none(prepared):
  directory, corpus = prepared
  statistics = json.loads((directory / STATISTICS).read_text())
  assert statistics['stores']['conversations'] == {
    'fingerprint': corpus.conversations.fingerprint,
    'domains': {},
  }
  page = write_corpus_page(directory).read_text()
  _, after = page.split('<h2>Conversations</h2>')
  assert after.split('</section>')[0].strip() == '<p>None.</p>'
  assert page.count('<p>None.</p>') == 1


def data_of(mixture):
  fields = {
    'seq_len': 128,
    'batch_size': 4,
    'document_mask': True,
    'restart_positions': True,
    'loss_normalizer': 'token',
    'mixture': mixture,
  }
  return from_config_dict(DataConfig, fields)


def test_rows_of_its_documents_are_read(prepared):
  source = BatchSource(data_of(ROWS), prepared[1], seed=0, num_steps=2)
  assert all((source[i].segment_ids > 0).all() for i in range(len(source)))


def test_a_mixture_that_wants_conversations_is_refused_in_one_line(prepared):
  chats = {'chat': {'kind': 'conversations', 'weight': 1.0}}
  message = (
    r'data\.mixture\.chat: the corpus has no conversations: prepare one with'
    r' corpus\.conversations or .*, or take this source out of'
  )
  with pytest.raises(ConfigError, match=message) as raised:
    BatchSource(data_of(chats), prepared[1], seed=0, num_steps=2)
  assert '\n' not in str(raised.value)


def test_an_inspection_shows_its_rows(tmp_path):
  stage = small.stage_config(
    corpus={'conversations': {}}, data={'mixture': ROWS}
  )
  corpus = prepare_corpus(stage.corpus, tmp_path / 'c', seed=0)
  inspection = inspect_step(stage, corpus)
  assert inspection.counts.total.rows > 0


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'filters': {'min_tokens': 10**6}}, r'corpus\.filters: none of the'),
    ({'sources': {}}, r'corpus\.sources names none: every corpus needs docum'),
  ],
)
def test_documents_must_be_there(texts, tmp_path, make, changes, message):
  config = config_of(texts, conversations={}, **changes)
  with pytest.raises(ConfigError, match=message) as raised:
    make(config, tmp_path / 'c', seed=0)
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'c').exists()


@pytest.mark.parametrize('tiny', ['', 'tiny,'])
def test_the_long_stages_of_prolong_share_a_corpus_of_text_alone(tiny):
  corpora = []
  for file in (stage_64k, stage_512k):
    whole, stage = (
      from_config_dict(StageConfig, file.get_config(tiny + option))
      for option in ('', 'text_only')
    )
    assert whole.corpus.asks_for_conversations
    assert not stage.corpus.asks_for_conversations
    assert dataclasses.replace(stage, corpus=whole.corpus) == whole
    corpora.append(stage.corpus)
  assert corpora[0] == corpora[1]
