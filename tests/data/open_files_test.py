"""Files that are open: the ones used last, and no more than may be."""

import resource

import pytest

from longctx_jax.data import open_files
from longctx_jax.data.open_files import OpenFiles, max_open_files


@pytest.fixture
def opened(monkeypatch):
  monkeypatch.setattr(open_files, 'max_open_files', lambda: 2)
  return []


def test_the_one_that_was_used_least_recently_is_closed(opened):
  files = OpenFiles(lambda i: opened.append(i) or f'file {i}', 3, 'it')
  # used    0 1 2   1 0   1   2   1 0
  # open    0 0 1   2 1   0   1   2 1
  #           1 2   1 0   1   2   1 0
  assert [files[i] for i in (1, 0, 1, 2, 1, 0)] == [
    *(f'file {i}' for i in (1, 0, 1, 2, 1, 0)),
  ]
  assert opened == [0, 1, 2, 0, 2, 0]


def test_one_that_cannot_be_opened_comes_up_at_once(opened):
  with pytest.raises(KeyError):
    OpenFiles({0: 'file', 1: 'file'}.__getitem__, 3, 'it')


@pytest.mark.parametrize(
  ('limit', 'most'), [(1024, 256), (2, 1), (resource.RLIM_INFINITY, 1 << 18)]
)
def test_three_stores_stay_below_the_limit_of_a_process(
  monkeypatch, limit, most
):
  monkeypatch.setattr(resource, 'getrlimit', lambda _: (limit, limit))
  assert max_open_files() == most
