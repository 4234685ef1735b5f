"""Batches: step s is the same from wherever, and on however many hosts."""

import dataclasses
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.data import pipeline
from longctx_jax.data.pipeline import BatchSource, make_pipeline
from longctx_jax.data.sentencepiece_tokenizer import train_sentencepiece
from tests import small

STEPS = 4
EVEN = {'text': 0.4, 'chat': 0.3, 'tables': 0.3}


def data_config(**changes):
  return small.stage_config(data=changes).data


def source_of(corpus, *, seed=0, steps=STEPS, **changes):
  return BatchSource(data_config(**changes), corpus, seed=seed, num_steps=steps)


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_any_row_can_be_read_first(corpus):
  source, again = source_of(corpus), source_of(corpus)
  rows = [source[i] for i in range(len(source))]
  assert len(rows) == STEPS * 8
  for i in np.random.default_rng(0).permutation(len(rows)).tolist():
    assert equal(again[i], rows[i])


@pytest.mark.parametrize('tokens', [1, 300, 10**6])
def test_how_many_rows_are_read_together_does_not_change_them(
  corpus, monkeypatch, tokens
):
  source = source_of(corpus)
  expected = [source[i] for i in range(3, 20)]
  monkeypatch.setattr(pipeline, '_TOKENS_TOGETHER', tokens)
  batch = source.rows(3, 20)
  assert all(map(equal, zip(*batch, strict=True), expected))


@pytest.mark.parametrize('start_step', range(STEPS + 1))
def test_a_pipeline_goes_on_from_any_step_as_if_never_stopped(
  corpus, start_step
):
  source = source_of(corpus)
  expected = [
    [np.stack(field) for field in zip(*rows, strict=True)]
    for step in range(STEPS)
    for rows in [[source[8 * step + k] for k in range(8)]]
  ]
  batches = list(make_pipeline(source_of(corpus), 8, start_step=start_step))
  assert len(batches) == STEPS - start_step
  for batch, fields in zip(batches, expected[start_step:], strict=True):
    assert equal(batch, fields)


# Packed documents, conversations and made-up tables, with every option on that
# goes with a document mask; and chunk-interleaved rows, with every other.
PACKED = {
  'document_mask': True,
  'restart_positions': True,
  'loss_normalizer': 'sequence',
  'weight_schedule': ({'step': 3, 'weights': EVEN},),
  'window_schedule': ({'step': 0, 'window': 16}, {'step': 5, 'window': 128}),
  'position_jumps': {'kind': 'longrecipe', 'target_len': 999, 'num_chunks': 4},
}
INTERLEAVED = {
  'document_mask': False,
  'restart_positions': False,
  'position_jumps': {'kind': 'pose', 'target_len': 999},
  'mixture': {
    **dataclasses.asdict(data_config())['mixture'],
    'text': {
      'kind': 'documents',
      'weight': 0.5,
      'domains': (),
      'planner': 'interleave',
      'docs_per_row': 2,
      'num_chunks': 2,
    },
  },
}
RETRIEVAL = {
  'seq_len': 512,
  'mixture': {
    **dataclasses.asdict(data_config())['mixture'],
    'chat': {
      'kind': 'retrieval',
      'weight': 0.25,
      'tasks': {
        'passkey': 1.0,
        'number_string': 1.0,
        'kv_retrieval': 1.0,
        'needle': 1.0,
      },
      'min_len': 128,
      'max_len': 512,
      'max_questions': 3,
    },
  },
}
RUNS = {'packed': PACKED, 'interleaved': INTERLEAVED, 'retrieval': RETRIEVAL}
RUN_STEPS = 6


@pytest.fixture(scope='module', params=RUNS)
def run(request, corpus):
  """(source, its global batches), of a run that starts at step 0."""
  changes = RUNS[request.param]
  source = source_of(corpus, steps=RUN_STEPS, **changes)
  rows = [source[i] for i in range(8 * RUN_STEPS)]
  batches = [
    [np.stack(field) for field in zip(*rows[k : k + 8], strict=True)]
    for k in range(0, len(rows), 8)
  ]
  again = source_of(corpus, steps=RUN_STEPS, **changes)
  return again, batches


def global_batches(source, start_step, stop_step, num_hosts):
  """What `num_hosts` hosts read, each on its own, put together again."""
  pipelines = [
    make_pipeline(source, 8, start_step=start_step, host=(k, num_hosts))
    for k in range(num_hosts)
  ]
  for _ in range(start_step, stop_step):
    parts = [next(pipeline) for pipeline in pipelines]
    yield [np.concatenate(field) for field in zip(*parts, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
  st.integers(0, RUN_STEPS),
  st.integers(0, RUN_STEPS),
  st.sampled_from([1, 2, 4]),
  st.sampled_from([1, 2, 4]),
)
def test_global_batches_are_the_same_on_any_hosts_before_and_after_a_resume(
  run, start, resumed, hosts, hosts_then
):
  source, expected = run
  start, resumed = sorted((start, resumed))
  batches = [
    *global_batches(source, start, resumed, hosts),
    *global_batches(source, resumed, RUN_STEPS, hosts_then),
  ]
  assert len(batches) == RUN_STEPS - start
  for batch, fields in zip(batches, expected[start:], strict=True):
    assert equal(batch, fields)


def test_the_options_are_on_in_the_batches_that_hosts_agree_on(run):
  _, batches = run
  rows = [row for batch in batches for row in zip(*batch, strict=True)]
  assert len({tokens.tobytes() for tokens, *_ in rows}) > len(rows) / 2
  assert max(positions.max() for *_, positions in rows) > 128


def test_a_host_ends_where_the_run_does(corpus):
  source = source_of(corpus)
  for k in range(4):
    batches = list(make_pipeline(source, 8, start_step=1, host=(k, 4)))
    assert [len(batch.tokens) for batch in batches] == [2] * (STEPS - 1)


def test_rows_that_do_not_divide_over_the_hosts_are_refused(corpus):
  with pytest.raises(ConfigError, match=r'batch_size=8 .* over 3 hosts'):
    make_pipeline(source_of(corpus), 8, host=(0, 3))


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('text', {'domains': ('nosuch',)}, 'no documents of nosuch in the store'),
    ('text', {'planner': 'whole'}, r'document \d+ has \d+ tokens and does not'),
    ('tables', {'tasks': {'nosuch': 1.0}}, '.*nosuch'),
  ],
)
def test_what_is_wrong_with_a_source_names_it(corpus, name, fields, message):
  data = data_config()
  source = dataclasses.replace(data.mixture[name], weight=1.0, **fields)
  data = dataclasses.replace(data, mixture={name: source})
  with pytest.raises(ConfigError, match=rf'^data\.mixture\.{name}: {message}'):
    BatchSource(data, corpus, seed=0, num_steps=STEPS)


def test_a_pickled_source_has_the_same_rows(corpus):
  source = source_of(corpus)
  copy = pickle.loads(pickle.dumps(source))
  assert copy.fingerprint == source.fingerprint
  assert all(equal(copy[i], source[i]) for i in range(len(source)))


def test_the_epochs_of_each_source_are_counted_and_told(corpus, caplog):
  caplog.set_level(logging.INFO)
  source = source_of(corpus, steps=16)
  chat = source._sources['chat'].epoch_len
  text = source._sources['text'].epoch_len
  rows = source._mixture.num_served()
  assert chat < rows['chat']
  assert text > rows['text']
  assert source.epochs == {
    'text': rows['text'] / text,
    'chat': rows['chat'] / chat,
  }
  lines = {
    record.message: record.levelname
    for record in caplog.records
    if record.message.startswith('data:')
  }
  assert lines == {
    f'data: text serves {rows["text"]} rows, at most {128 * rows["text"]:,}'
    f' tokens, {rows["text"] / text:.2f} epochs of {text} rows': 'INFO',
    f'data: chat serves {rows["chat"]} rows, at most {128 * rows["chat"]:,}'
    f' tokens, {rows["chat"] / chat:.2f} epochs of {chat} rows: shuffled again'
    ' for each epoch': 'WARNING',
    f'data: tables serves {rows["tables"]} rows, at most'
    f' {128 * rows["tables"]:,} tokens, made as they are read': 'INFO',
  }


def test_a_source_that_runs_dry_is_refused_if_the_config_says_so(corpus):
  chat = source_of(corpus)._sources['chat'].epoch_len
  assert 16 < chat < 32
  source_of(corpus, steps=4, on_repeat='refuse')
  with pytest.raises(
    ConfigError, match=rf'mixture.chat has {chat} rows and would serve 3.: add'
  ):
    source_of(corpus, steps=16, on_repeat='refuse')


def test_weights_of_a_schedule_are_reached_at_its_steps(corpus):
  names = {'text': 0.0, 'chat': 1.0, 'tables': 0.0}
  later = ({'step': 16, 'weights': EVEN}, {'step': 17, 'weights': names})
  source = source_of(corpus, steps=64, weight_schedule=later)
  user = corpus.tokenizer.control_id('<|user|>')
  assert all((source[i].tokens == user).any() for i in range(256, 300))
  # Integral of the share of `tables`, linear over 16 steps of 8 rows, then 1.
  first = {name: s.weight for name, s in data_config().mixture.items()}
  first, last = (
    source._shares_of_rows(weights)['tables'] for weights in (first, EVEN)
  )
  expected = (first + last) / 2 * 128 + last / 2 * 8
  served = source._mixture.num_served()
  assert served['tables'] == pytest.approx(expected, abs=1)


def test_the_order_in_which_sources_are_named_does_not_change_rows(corpus):
  source = source_of(corpus)
  mixture = dict(reversed(data_config().mixture.items()))
  config = dataclasses.replace(data_config(), mixture=mixture)
  other = BatchSource(config, corpus, seed=0, num_steps=STEPS)
  assert other.fingerprint == source.fingerprint
  for i in range(len(source)):
    assert equal(other[i], source[i])


def test_more_steps_do_not_change_the_rows(corpus):
  source = source_of(corpus)
  longer = source_of(corpus, steps=9)
  assert all(equal(longer[i], source[i]) for i in range(len(source)))
  assert longer.fingerprint == source.fingerprint


def test_weights_are_the_shares_of_tokens(corpus):
  config = data_config()
  source = source_of(corpus, steps=48)
  rows, tokens = Counter(), Counter()
  for i in range(len(source)):
    name, row = source.origin(i).source, source[i]
    marked = bool((row.tokens == corpus.tokenizer.control_id('<|user|>')).any())
    assert marked == (name != 'text')
    rows[name] += 1
    tokens[name] += np.count_nonzero(row.segment_ids)
  # Rows of conversations and tables are not full, so there are more of them.
  assert rows['text'] < 0.47 * rows.total()
  for name, each in config.mixture.items():
    assert tokens[name] / tokens.total() == pytest.approx(each.weight, abs=0.01)


def test_origins_are_those_of_the_rows(corpus):
  """Segments are slices here, so both must be as long, in the same order."""
  source = BatchSource(data_config(), corpus, seed=0, num_steps=STEPS)
  numbers = {}
  for i in range(len(source)):
    origin = source.origin(i)
    lens = np.bincount(source[i].segment_ids)[1:]
    assert [s.stop - s.start for s in origin.slices] == lens.tolist()
    numbers.setdefault(origin.source, []).append(origin.number)
    if origin.source != 'tables':
      kinds = {'text': {'code', 'docs'}, 'chat': {'extract', 'needle'}}
      assert {s.domain for s in origin.slices} <= kinds[origin.source]
      assert origin.epoch_len > 0
  # Each source counts its own rows, without a gap.
  assert all(n == list(range(len(n))) for n in numbers.values())
  assert numbers.keys() == {'text', 'chat', 'tables'}


def test_targets_of_conversations_decode_to_answers(corpus):
  tokenizer = corpus.tokenizer
  chat = {'chat': {'kind': 'conversations', 'weight': 1.0}}
  source = source_of(corpus, mixture=chat)
  for i in range(len(source)):
    row = source[i]
    trained = row.loss_weights > 0
    # Each answer, and nothing before it, is between a marker and an end.
    starts = np.flatnonzero(row.tokens == tokenizer.control_id('<|assistant|>'))
    ends = np.flatnonzero(row.targets == tokenizer.control_id('<|end|>'))
    expected = np.zeros(len(trained), bool)
    for start, end in zip(starts, ends, strict=True):
      expected[start : end + 1] = True
    assert len(starts) >= 1
    assert np.array_equal(trained, expected)


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'document_mask': False},
    {'batch_size': 16},
    {'loss_normalizer': 'sequence'},
    {'label_first_token': False},
    {'weight_schedule': ({'step': 2, 'weights': EVEN},)},
    {'window_schedule': ({'step': 0, 'window': 64},)},
    {'position_jumps': {'kind': 'pose', 'target_len': 256}},
    {'mixture': {'chat': {'kind': 'conversations', 'weight': 1.0}}},
  ],
)
def test_the_fingerprint_changes_with_seed_and_data_section(corpus, changes):
  fingerprint = source_of(corpus).fingerprint
  assert source_of(corpus, **changes).fingerprint != fingerprint
  assert source_of(corpus).fingerprint == fingerprint


def test_the_fingerprint_changes_with_the_order_of_examples(
  corpus, monkeypatch
):
  fingerprint = source_of(corpus).fingerprint
  monkeypatch.setattr(pipeline, 'ORDER', pipeline.ORDER + 1)
  assert source_of(corpus).fingerprint != fingerprint


@pytest.mark.parametrize('changes', [{'num_workers': 2}])
def test_how_rows_are_read_does_not_change_the_fingerprint(corpus, changes):
  fingerprint = source_of(corpus).fingerprint
  assert source_of(corpus, **changes).fingerprint == fingerprint
  # This one refuses a run or lets it pass, and changes no row of it.
  refusing = source_of(corpus, steps=2, on_repeat='refuse').fingerprint
  assert refusing == source_of(corpus, steps=2).fingerprint


def test_the_fingerprint_changes_with_tokenizer_and_documents(corpus, tmp_path):
  words = ['some words to train another tokenizer on'] * 9
  other = train_sentencepiece(words, 290, tmp_path / 'tokenizer.model')
  fingerprints = {
    source_of(changed).fingerprint
    for changed in (
      corpus,
      corpus._replace(tokenizer=other),
      corpus._replace(documents=corpus.heldout),
    )
  }
  assert len(fingerprints) == 3
