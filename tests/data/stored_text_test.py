"""Stored documents as text: what lies between two places, round and round."""

import numpy as np
import pytest

from longctx_jax.data.stored_text import StoredText


@pytest.fixture(scope='module')
def text(corpus):
  numbers = np.array([3, 0, 5])
  return StoredText(corpus.documents, numbers, corpus.tokenizer)


def document(corpus, number):
  length = int(corpus.documents.lengths[number])
  return corpus.documents.read(number, 0, length)[0]


def test_all_of_it_is_the_documents_with_an_empty_line_between(corpus, text):
  whole = [
    corpus.tokenizer.decode(document(corpus, number)) for number in (3, 0, 5)
  ]
  assert text.read(0, len(text)) == '\n\n'.join(whole)
  # Begin and end of a document are no text.
  assert '<' not in whole[0][:1]


def test_the_fingerprint_changes_with_the_documents(corpus, text):
  def fingerprint(numbers):
    return StoredText(
      corpus.documents, np.array(numbers), corpus.tokenizer
    ).fingerprint

  assert fingerprint([3, 0, 5]) == text.fingerprint
  assert fingerprint([3, 5, 0]) != text.fingerprint
  assert text.fingerprint.startswith(corpus.documents.fingerprint)


def test_it_goes_round_and_round(corpus, text):
  once = text.read(0, len(text))
  assert text.read(len(text), len(text)) == once
  assert text.read(0, 2 * len(text)) == f'{once}\n\n{once}'


def test_a_stretch_is_what_its_tokens_say(corpus, text):
  first, second = document(corpus, 3), document(corpus, 0)
  start = len(first) - 40
  expected = [first[-40:], second[:20]]
  decode = corpus.tokenizer.decode
  assert text.read(start, 60) == '\n\n'.join(map(decode, expected))
  assert text.read(5, 10) == decode(first[5:15])
  assert text.read(5, 0) == ''


class Bytes:
  """A tokenizer of bytes."""

  def decode(self, ids):
    return bytes(np.asarray(ids).tolist()).decode(errors='replace')


class Store:
  """A store of one document."""

  fingerprint = ''

  def __init__(self, data):
    self._tokens = np.frombuffer(data, np.uint8)
    self.lengths = np.array([len(data)])

  def read(self, number, start, stop):
    assert number == 0
    return self._tokens[start:stop], None


def test_a_character_that_is_cut_is_left_out():
  text = StoredText(Store('héé!'.encode()), np.array([0]), Bytes())
  assert text.read(0, 6) == 'héé!'
  assert text.read(0, 2) == 'h'
  assert text.read(2, 3) == 'é'
