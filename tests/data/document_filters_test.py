"""Filters: line ends, equal texts, and lengths in tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import DocumentFilters
from longctx_jax.data.document_filters import (
  fit_length,
  normalise_line_ends,
  text_key,
)

TEXTS = st.text(st.sampled_from('a\r\n'), max_size=12)


@pytest.mark.parametrize(
  ('text', 'normal'),
  [
    ('a\nb\n', 'a\nb\n'),
    ('a\r\nb\r\n', 'a\nb\n'),
    ('a\rb\r', 'a\nb\n'),
    ('a\r\n\rb\n\r\n', 'a\n\nb\n\n'),
  ],
)
def test_lines_end_in_one_way(text, normal):
  assert normalise_line_ends(text) == normal


@given(TEXTS)
def test_normal_line_ends_stay_as_they_are(text):
  normal = normalise_line_ends(text)
  assert '\r' not in normal
  assert normalise_line_ends(normal) == normal
  # `splitlines` is Python's own idea of these three line ends.
  assert normal.splitlines() == text.splitlines()


@given(TEXTS, TEXTS)
def test_equal_texts_and_no_others_share_a_key(one, other):
  assert (text_key(one) == text_key(other)) == (one == other)
  assert len(text_key(one)) == 16


def test_keys_are_the_same_in_every_process():
  # As `b2sum -l 128` says; Python's own hash of a text is salted.
  assert text_key('ä').hex() == 'cb4d3892d2cb5e6b1bd63f7e4247a02e'


@pytest.mark.parametrize(
  ('length', 'too_long', 'kept', 'done'),
  [
    (2, 'cut', None, 'too_short'),
    (3, 'cut', 3, ''),
    (5, 'cut', 5, ''),
    (6, 'cut', 5, 'cut'),
    (2, 'drop', None, 'too_short'),
    (5, 'drop', 5, ''),
    (6, 'drop', None, 'too_long'),
  ],
)
def test_lengths_are_kept_between_least_and_most(length, too_long, kept, done):
  filters = DocumentFilters(min_tokens=3, max_tokens=5, too_long=too_long)
  tokens = np.arange(length)
  left, what = fit_length(tokens, filters)
  assert what == done
  if kept is None:
    assert left is None
  else:
    np.testing.assert_array_equal(left, np.arange(kept))


def test_without_filters_any_length_stays_but_none():
  for length in (1, 10**6):
    tokens = np.zeros(length)
    left, done = fit_length(tokens, DocumentFilters())
    assert (len(left), done) == (length, '')
  assert fit_length(np.zeros(0), DocumentFilters()) == (None, 'too_short')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_tokens': 9, 'max_tokens': 8}, 'min_tokens=9 is above max_tokens=8'),
    ({'min_tokens': -1}, 'min_tokens must be at least 0, got -1'),
    ({'min_chars': -1}, 'min_chars must be at least 0, got -1'),
    ({'max_tokens': -1}, 'max_tokens must be at least 0, got -1'),
  ],
)
def test_lengths_that_no_document_has_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    DocumentFilters(**fields)
