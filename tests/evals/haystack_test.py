"""The haystack: any stretch of it is that of all documents in memory."""

import types

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.store_writer import StoredDocument
from longctx_jax.evals.haystack import Haystack
from tests.data.stored_documents import write

BOS, EOS = 1, 2
# With and without a begin and an end, or nothing but those.
DOCUMENTS = st.lists(
  st.tuples(st.booleans(), st.integers(0, 6), st.booleans()).filter(any),
  min_size=1,
  max_size=6,
)


def haystack_of(directory, documents, bos_id, eos_id):
  """(Haystack, all of its tokens as found the slow way)."""
  tokens = [
    np.array([BOS] * begin + [*range(10, 10 + n)] + [EOS] * end, np.int32)
    for begin, n, end in documents
  ]
  store = write(
    directory,
    [StoredDocument(f'{i}', 'web', t, None) for i, t in enumerate(tokens)],
    page_tokens=4,
  )
  tokenizer = types.SimpleNamespace(bos_id=bos_id, eos_id=eos_id)
  joined = np.concatenate(tokens)
  around = [i for i in (bos_id, eos_id) if i is not None]
  return Haystack(store, tokenizer), joined[~np.isin(joined, around)]


@given(
  documents=DOCUMENTS,
  bos_id=st.sampled_from([BOS, None]),
  eos_id=st.sampled_from([EOS, None]),
  data=st.data(),
)
def test_any_stretch_is_that_of_all_in_memory(
  tmp_path_factory, documents, bos_id, eos_id, data
):
  directory = tmp_path_factory.mktemp('store') / 'a'
  if bos_id is None:
    documents = [(False, n or 1, end) for _, n, end in documents]
  if eos_id is None:
    documents = [(begin, n or 1, False) for begin, n, _ in documents]
  haystack, expected = haystack_of(directory, documents, bos_id, eos_id)
  assert len(haystack) == len(expected)
  start = data.draw(st.integers(0, len(expected)))
  stop = data.draw(st.integers(start, len(expected)))
  np.testing.assert_array_equal(haystack[start:stop], expected[start:stop])
  np.testing.assert_array_equal(haystack[:], expected)


def test_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch):
  haystack, _ = haystack_of(tmp_path / 'a', [(1, 6, 1)] * 5, BOS, EOS)
  store, read = haystack._store, []
  whole = store.read
  monkeypatch.setattr(store, 'read', lambda *at: read.append(at) or whole(*at))
  assert haystack[7:16].tolist() == [11, 12, 13, 14, 15, 10, 11, 12, 13]
  assert read == [(1, 2, 7), (2, 1, 5)]
