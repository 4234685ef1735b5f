"""Losses by position and by context, of a model whose losses are known."""

import numpy as np
import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.progress import Progress
from longctx_jax.suites.perplexity import context_lengths, perplexity

LENGTH, TARGETS = 256, 32


class KnownLosses:
  """A token's loss is the token's number, less what context it has."""

  def __init__(self):
    self.asked = []

  def rows(self, rows):
    for row in rows:
      self.asked.append(row)
      yield row[1:] - 0.001 * np.arange(1, len(row)), row[1:]


def measure(documents, begin=(), **changes):
  how = {'length': LENGTH, 'num_targets': TARGETS, 'seed': 0, **changes}
  model = KnownLosses()
  found = perplexity(model, documents, begin=np.array(begin, np.int32), **how)
  return found, model


def constant(value, length=LENGTH):
  return np.full(length, value, np.int32)


@pytest.mark.parametrize('begin', [(), (5,)])
def test_losses_stand_at_the_positions_of_their_tokens(begin):
  found, _ = measure([constant(3)], begin)
  # The first token is never counted; a begin puts all one further on.
  further = len(begin)
  for bucket, mean in found['by_position'].items():
    start, stop = map(int, bucket.split('-'))
    t = np.arange(max(start, 1), stop)
    assert mean['loss'] == pytest.approx(np.mean(3 - 0.001 * (t + further)))


def test_only_the_context_differs_between_contexts():
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
def test_targets_without_tokens_or_context_are_refused(num_targets):
  message = f'--num_targets={num_targets} must be at least 1, and below .* 256'
  with pytest.raises(ConfigError, match=message):
    context_lengths(LENGTH, num_targets)
  with pytest.raises(ConfigError, match=message):
    measure([constant(3)], num_targets=num_targets)


def test_intervals_are_over_documents():
  same, _ = measure([constant(3)] * 9)
  assert same['loss']['low'] == pytest.approx(same['loss']['high'])
  found, _ = measure([constant(v) for v in range(1, 10)])
  assert found['loss']['loss'] == pytest.approx(5 - 0.128)
  # The mean of nine draws from 1 ... 9 has a deviation of 2.58 / 3.
  half = (found['loss']['high'] - found['loss']['low']) / 2
  assert half == pytest.approx(1.96 * 2.58 / 3, rel=0.1)


def test_progress_counts_every_text_that_is_read(monkeypatch):
  counted = []
  monkeypatch.setattr(
    Progress, 'update', lambda progress, done, values: counted.append(done)
  )
  _, model = measure([constant(1), constant(2)])
  assert counted == list(range(1, len(model.asked) + 1))
  assert len(counted) == 2 * (1 + len(context_lengths(LENGTH, TARGETS)))


def test_short_documents_are_left_out_and_none_is_an_error():
  found, _ = measure([constant(3), constant(9, LENGTH - 1)])
  assert found['num_documents'] == 1
  with pytest.raises(ConfigError, match=r'256 tokens .* the longest has 255'):
    measure([constant(9, LENGTH - 1)])


def test_two_tokens_are_enough():
  found, _ = measure([np.array([3, 7])], length=2, num_targets=1)
  assert found['loss']['loss'] == pytest.approx(7 - 0.001)
