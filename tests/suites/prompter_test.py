"""Prompts drawn, and lengths against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.suites.prompter import cut_middle, largest_that_fits
from tests.suites.words import word_prompter


def test_a_prompt_is_its_parts_in_their_frame():
  prompter = word_prompter()
  ids = prompter.encode(' in tokens')
  made = prompter.prompt(['Some', ' text', ids, ' and more'], ' so')
  assert prompter.tokenizer.decode(made) == (
    '<user>Some text in tokens and more<model> so'
  )
  assert made.dtype == np.int32


def test_texts_beside_each_other_are_encoded_as_one():
  prompter = word_prompter('', '')
  assert len(prompter.prompt(['Some', 'thing'])) == 1


@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 60))
def test_the_largest_that_fits_is_that_of_a_search_one_by_one(
  start, growth, limit
):
  def build(n):
    return np.zeros(start + growth * n)

  expected = [n for n in range(100) if len(build(n)) <= limit]
  found = largest_that_fits(build, limit)
  if not expected:
    assert found is None
  else:
    assert found[0] == max(expected)
    assert len(found[1]) == len(build(max(expected)))


@pytest.mark.parametrize(
  ('limit', 'kept', 'cut'),
  [
    (9, [0, 1, 2, 3, 4, 5, 6], (7, 7)),
    (7, [0, 1, 2, 3, 4, 5, 6], (7, 7)),
    (5, [0, 1, 4, 5, 6], (2, 4)),
    (4, [0, 1, 5, 6], (2, 5)),
    (1, [6], (0, 6)),
  ],
)
def test_what_is_cut_out_is_the_middle(limit, kept, cut):
  found, (start, stop) = cut_middle(np.arange(7), limit)
  assert found.tolist() == kept
  assert (start, stop) == cut
