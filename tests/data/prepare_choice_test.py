"""Choosing documents by hashes, against a loop that does it one by one."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.prepare_choice import Scan, choose


@st.composite
def scanned_tasks(draw):
  """[(source, [(key, order, chars, held out), ...]), ...], with many ties."""
  document = st.tuples(
    st.integers(0, 5),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.sampled_from([0, 200, 300, 500]),
    st.booleans(),
  )
  sources = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=5)))
  return [(s, draw(st.lists(document, max_size=6))) for s in sources]


def choose_one_by_one(tasks, max_chars, deduplicate, sample_chars):
  """{(task, place): characters}, doubles, sampled ones."""
  ranked = sorted(
    (source, order, t, i, key, chars, heldout)
    for t, (source, documents) in enumerate(tasks)
    for i, (key, order, chars, heldout) in enumerate(documents)
    if chars
  )
  limits, doubles, sampled, keys = {}, set(), set(), set()
  for source, rest in itertools.groupby(ranked, key=lambda d: d[0]):
    left = max_chars[source]
    for _, _, t, i, key, chars, _ in rest:
      limit = min(chars, left)
      left -= limit
      if not limit:
        continue
      if deduplicate and limit == chars and key in keys:
        doubles.add((t, i))
        continue
      if limit == chars:
        keys.add(key)
      limits[t, i] = limit
  total = 0
  for _, _, t, i, _, _, heldout in sorted(ranked, key=lambda d: d[1:4]):
    if (t, i) in limits and not heldout and total < sample_chars:
      sampled.add((t, i))
      total += limits[t, i]
  return limits, doubles, sampled


@given(
  scanned_tasks(),
  st.lists(st.integers(0, 1500), min_size=3, max_size=3),
  st.booleans(),
  st.integers(0, 2000),
)
def test_the_choice_is_that_of_a_loop(
  tasks, max_chars, deduplicate, sample_chars
):
  scans = [
    Scan(
      np.array([[d[0] % 2, d[0]] for d in documents], np.uint64).reshape(-1, 2),
      np.array([d[1] for d in documents], np.float64),
      np.array([d[2] for d in documents], np.int64),
      np.array([d[3] for d in documents], bool),
    )
    for _, documents in tasks
  ]
  choices = choose(
    scans,
    [source for source, _ in tasks],
    max_chars,
    deduplicate=deduplicate,
    sample_chars=sample_chars,
  )
  limits, doubles, sampled = choose_one_by_one(
    tasks, max_chars, deduplicate, sample_chars
  )
  places = [(t, i) for t, (_, d) in enumerate(tasks) for i in range(len(d))]
  for t, i in places:
    assert choices[t].limits[i] == limits.get((t, i), 0)
    assert choices[t].doubles[i] == ((t, i) in doubles)
    assert choices[t].sampled[i] == ((t, i) in sampled)
  assert [len(c.limits) for c in choices] == [len(d) for _, d in tasks]


def test_documents_of_one_text_are_kept_once():
  # Two tasks of one source; the texts are 7, 8, 7 and 7.
  scans = [
    Scan(
      np.array([[0, 7], [0, 8]], np.uint64),
      np.array([0.9, 0.5]),
      np.array([300, 400]),
      np.array([False, False]),
    ),
    Scan(
      np.array([[0, 7], [0, 7]], np.uint64),
      np.array([0.1, 0.7]),
      np.array([300, 300]),
      np.array([False, False]),
    ),
  ]
  first, second = choose(
    scans, [0, 0], [10**6], deduplicate=True, sample_chars=0
  )
  assert first.limits.tolist() == [0, 400]
  assert second.limits.tolist() == [300, 0]
  assert first.doubles.tolist() == [True, False]
  assert second.doubles.tolist() == [False, True]
