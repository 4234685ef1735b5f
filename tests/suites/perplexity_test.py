"""Losses by position and by context, of a model whose losses are known."""

import hashlib
import json

import numpy as np
import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.progress import Progress
from longctx_jax.suites.perplexity import context_lengths, perplexity

LENGTH, TARGETS = 256, 32


class KnownLosses:
  """A token's loss is the token's number, less what context it has."""

  def __init__(self, fails_after=10**9):
    self.asked, self._left = [], fails_after

  def rows(self, rows, *, start=0):
    for row in rows[start:]:
      if not self._left:
        raise KeyboardInterrupt
      self._left -= 1
      self.asked.append(row)
      losses = row[1:] - 0.001 * np.arange(1, len(row))
      yield losses.astype(np.float32), row[1:]


def run(directory, documents, model, begin=(), **changes):
  how = {'length': LENGTH, 'num_targets': TARGETS, 'seed': 0}
  how |= {'asked_as': {'model': 'm'}, **changes}
  begin = np.array(begin, np.int32)
  return perplexity(lambda: model, documents, directory, begin=begin, **how)


@pytest.fixture
def measure(tmp_path_factory):
  """Results in a new place, and the model that was asked."""

  def measure(documents, begin=(), **changes):
    model, directory = KnownLosses(), tmp_path_factory.mktemp('out')
    return run(directory, documents, model, begin, **changes), model

  return measure


def constant(value, length=LENGTH):
  return np.full(length, value, np.int32)


@pytest.mark.parametrize('begin', [(), (5,)])
def test_losses_stand_at_the_positions_of_their_tokens(measure, begin):
  found, _ = measure([constant(3)], begin)
  # The first token is never counted; a begin puts all one further on.
  further = len(begin)
  for bucket, mean in found['by_position'].items():
    start, stop = map(int, bucket.split('-'))
    t = np.arange(max(start, 1), stop)
    assert mean['loss'] == pytest.approx(np.mean(3 - 0.001 * (t + further)))


def test_only_the_context_differs_between_contexts(measure):
  text = np.arange(LENGTH)
  found, model = measure([text])
  targets = text[-TARGETS:]
  for n, mean in found['by_context'].items():
    t = int(n) + np.arange(TARGETS)
    assert mean['loss'] == pytest.approx(np.mean(targets - 0.001 * t))
  for row in model.asked:
    assert row[-TARGETS:].tolist() == targets.tolist()


def test_contexts_are_doubled_up_to_all_there_is():
  assert context_lengths(256, 32) == [32, 64, 128, 224]
  assert context_lengths(96, 32) == [32, 64]
  assert context_lengths(64, 32) == [32]
  assert context_lengths(63, 32) == [31]
  assert context_lengths(1000, 1) == [*(2**k for k in range(10)), 999]


@pytest.mark.parametrize('num_targets', [-1, 0, 256, 257])
def test_targets_without_tokens_or_context_are_refused(measure, num_targets):
  message = f'--num_targets={num_targets} must be at least 1, and below .* 256'
  with pytest.raises(ConfigError, match=message):
    context_lengths(LENGTH, num_targets)
  with pytest.raises(ConfigError, match=message):
    measure([constant(3)], num_targets=num_targets)


def test_intervals_are_over_documents(measure):
  same, _ = measure([constant(3)] * 9)
  assert same['loss']['low'] == pytest.approx(same['loss']['high'])
  found, _ = measure([constant(v) for v in range(1, 10)])
  assert found['loss']['loss'] == pytest.approx(5 - 0.128)
  # The mean of nine draws from 1 ... 9 has a deviation of 2.58 / 3.
  half = (found['loss']['high'] - found['loss']['low']) / 2
  assert half == pytest.approx(1.96 * 2.58 / 3, rel=0.1)


def test_progress_counts_every_text_that_is_read(measure, monkeypatch):
  counted = []
  monkeypatch.setattr(
    Progress, 'update', lambda progress, done, values: counted.append(done)
  )
  _, model = measure([constant(1), constant(2)])
  assert counted == list(range(1, len(model.asked) + 1))
  assert len(counted) == 2 * (1 + len(context_lengths(LENGTH, TARGETS)))


def test_short_documents_are_left_out_and_none_is_an_error(measure):
  found, _ = measure([constant(3), constant(9, LENGTH - 1)])
  assert found['num_documents'] == 1
  with pytest.raises(ConfigError, match=r'256 tokens .* the longest has 255'):
    measure([constant(9, LENGTH - 1)])


def test_two_tokens_are_enough(measure):
  found, _ = measure([np.array([3, 7])], length=2, num_targets=1)
  assert found['loss']['loss'] == pytest.approx(7 - 0.001)


def random_texts(count, seed=0, length=LENGTH):
  rng = np.random.default_rng(seed)
  return list(rng.integers(0, 5, (count, length)).astype(np.int32))


def from_all_losses(documents, begin, seed):
  """The results, with every loss in memory."""
  rng, model = np.random.default_rng(seed), KnownLosses()

  def losses(texts):
    rows = [np.concatenate([np.array(begin, int), text]) for text in texts]
    return np.stack([found for found, _ in model.rows(rows)])[:, len(begin) :]

  def mean(losses):
    means = losses.mean(axis=1)
    drawn = means[rng.integers(len(means), size=(1000, len(means)))]
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return {'loss': means.mean(), 'low': low, 'high': high}

  whole = losses(documents)
  by_position = {
    '0-64': mean(whole[:, :63]),
    '64-128': mean(whole[:, 63:127]),
    '128-256': mean(whole[:, 127:]),
  }
  by_context = {
    str(n): mean(losses([d[-TARGETS - n :] for d in documents])[:, -TARGETS:])
    for n in (32, 64, 128, 224)
  }
  return {
    'num_documents': len(documents),
    'length': LENGTH,
    'num_targets': TARGETS,
    'loss': mean(whole),
    'by_position': by_position,
    'by_context': by_context,
  }


@pytest.mark.parametrize('begin', [(), (3, 4)])
def test_means_that_are_kept_give_what_all_losses_give(measure, begin):
  documents = random_texts(5)
  found, _ = measure(documents, begin, seed=7)
  assert found == from_all_losses(documents, begin, seed=7)
  assert json.loads(json.dumps(found)) == found


def lines(directory):
  text = (directory / 'perplexity.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_every_text_that_is_read_has_a_line_of_means(tmp_path):
  run(tmp_path, [constant(3), constant(2)], KnownLosses())
  settings, *records = lines(tmp_path)
  assert settings == {'settings': {'model': 'm'}}
  assert len(records) == 2 * 5
  # 3 less 0.001 times 1 ... 255; of the targets less 96 ... 127.
  assert records[0] == {
    'name': '256-0',
    'length': 256,
    'document': 0,
    'tokens': hashlib.sha256(constant(3).tobytes()).hexdigest()[:12],
    'losses': {
      'all': pytest.approx(3 - 0.128),
      '0-64': pytest.approx(3 - 0.032),
      '64-128': pytest.approx(3 - 0.0955),
      '128-256': pytest.approx(3 - 0.1915),
    },
  }
  after_64 = next(r for r in records if r['name'] == '256-32-64-1')
  assert after_64 == {
    'name': '256-32-64-1',
    'length': 256,
    'num_targets': 32,
    'context': 64,
    'document': 1,
    'tokens': hashlib.sha256(constant(2, 96).tobytes()).hexdigest()[:12],
    'losses': {'targets': pytest.approx(2 - 0.0795)},
  }


@pytest.mark.parametrize('kept', [0, 1, 3, 4, 6, 19])
def test_a_rerun_reads_what_is_missing_and_ends_the_same(tmp_path, kept):
  documents, begin = random_texts(4), (3,)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  expected = run(whole, documents, KnownLosses(), begin)
  with pytest.raises(KeyboardInterrupt):
    run(cut, documents, KnownLosses(kept), begin)
  assert (cut / 'perplexity.jsonl').exists() == (kept > 0)
  model = KnownLosses()
  assert run(cut, documents, model, begin) == expected
  assert len(model.asked) == 4 * 5 - kept
  paths = [directory / 'perplexity.jsonl' for directory in (cut, whole)]
  assert paths[0].read_bytes() == paths[1].read_bytes()


def test_progress_goes_on_from_what_is_there(tmp_path, monkeypatch, caplog):
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, random_texts(4), KnownLosses(6))
  counted, began, begin = [], [], Progress.__init__

  def spy(progress, label, total, start=0):
    began.append((total, start))
    begin(progress, label, total, start)

  monkeypatch.setattr(Progress, '__init__', spy)
  monkeypatch.setattr(
    Progress, 'update', lambda progress, done, values: counted.append(done)
  )
  with caplog.at_level('INFO'):
    run(tmp_path, random_texts(4), KnownLosses())
  assert began == [(20, 6)]
  assert counted == list(range(7, 21))
  assert 'perplexity: 6 of 20 texts are read already' in caplog.text


def test_no_model_is_needed_where_all_losses_are_there(tmp_path):
  expected = run(tmp_path, random_texts(3), KnownLosses())
  # `None` has no rows.
  assert run(tmp_path, random_texts(3), None) == expected


def test_losses_are_on_disk_before_the_next_are_asked(tmp_path):
  """Also for `kill -9`."""
  there = []

  class Looking(KnownLosses):
    def rows(self, rows, *, start=0):
      for each in super().rows(rows, start=start):
        written = (tmp_path / 'perplexity.jsonl').exists()
        there.append(len(lines(tmp_path)) - 1 if written else 0)
        yield each

  run(tmp_path, random_texts(2), Looking())
  assert there == list(range(10))


def test_a_line_that_was_cut_short_is_read_again(tmp_path):
  expected = run(tmp_path, random_texts(3), KnownLosses())
  path = tmp_path / 'perplexity.jsonl'
  whole = path.read_bytes()
  for cut in (1, 9):
    path.write_bytes(whole[:-cut])
    model = KnownLosses()
    assert run(tmp_path, random_texts(3), model) == expected
    assert len(model.asked) == 1
    assert path.read_bytes() == whole


def test_a_line_that_someone_took_out_is_read_again(tmp_path):
  """And those of the same reading behind it: batches begin at the first."""
  expected = run(tmp_path, random_texts(4), KnownLosses())
  path = tmp_path / 'perplexity.jsonl'
  kept = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(kept[:3] + kept[4:]))
  model = KnownLosses()
  assert run(tmp_path, random_texts(4), model) == expected
  assert len(model.asked) == 2


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path):
  documents = random_texts(2)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, documents, KnownLosses(3), asked_as={'seed': 0})
  before = (tmp_path / 'perplexity.jsonl').read_bytes()
  with pytest.raises(ConfigError, match='seed is 0 there, 1 here'):
    run(tmp_path, documents, None, asked_as={'seed': 1})
  assert (tmp_path / 'perplexity.jsonl').read_bytes() == before


@pytest.mark.parametrize('begin', [(), (4,)])
def test_losses_of_other_texts_are_refused(tmp_path, begin):
  """Files of `--text` may have changed, and its name has not."""
  documents = random_texts(3)
  run(tmp_path, documents, KnownLosses(), (3,))
  before = (tmp_path / 'perplexity.jsonl').read_bytes()
  message = r'perplexity\.jsonl holds losses of other texts \(document 0 was'
  with pytest.raises(ConfigError, match=message):
    run(tmp_path, documents, None, begin)
  documents[2] = documents[2].copy()
  documents[2][100] += 1
  with pytest.raises(ConfigError, match=r'other texts \(document 2 was'):
    run(tmp_path, documents, None, (3,))
  assert (tmp_path / 'perplexity.jsonl').read_bytes() == before


def test_more_documents_and_other_lengths_add_to_what_is_there(tmp_path):
  documents = random_texts(4)
  run(tmp_path, documents[:3], KnownLosses())
  for changes, texts in (
    # Each of the five readings has one document more.
    ({}, 5),
    # The whole documents have been read; contexts are 64, 128, 192.
    ({'num_targets': 64}, 4 * 3),
    # Contexts are 32, 64, 68.
    ({'length': 100}, 4 * 4),
    ({}, 0),
  ):
    model = KnownLosses()
    found = run(tmp_path, documents, model, **changes)
    assert len(model.asked) == texts
    fresh = tmp_path / f'{texts}'
    assert found == run(fresh, documents, KnownLosses(), **changes)
