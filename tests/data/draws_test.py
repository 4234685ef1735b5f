"""Random draws."""

import collections

import numpy as np
import pytest

from longctx_jax.data.draws import log_uniform


def test_log_uniform_gives_each_octave_the_same_share():
  rng = np.random.default_rng(0)
  drawn = [log_uniform(rng, 16, 1023) for _ in range(6_000)]
  octaves = collections.Counter(n.bit_length() for n in drawn)
  assert sorted(octaves) == [5, 6, 7, 8, 9, 10]
  for count in octaves.values():
    assert count == pytest.approx(1_000, abs=120)  # 4 standard deviations
  assert {log_uniform(rng, 3, 3) for _ in range(20)} == {3}
  with pytest.raises(ValueError, match='1 <= low <= high, got 5, 4'):
    log_uniform(rng, 5, 4)
