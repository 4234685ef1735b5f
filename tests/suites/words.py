"""A tokenizer whose tokens one can count by eye, and a prompter of it."""

import re

import numpy as np

from longctx_jax.suites.prompter import Prompter


class WordTokenizer:
  """Words with the space before them, and single other characters."""

  vocab_size = 1 << 20
  fingerprint, bos_id, eos_id = 'words', None, None

  def __init__(self, word):
    self._word, self._ids, self._texts = word, {}, []

  def encode(self, text):
    parts = re.findall(self._word, text)
    for part in parts:
      if part not in self._ids:
        self._ids[part] = len(self._texts)
        self._texts.append(part)
    return np.array([self._ids[part] for part in parts], np.int32)

  def decode(self, ids):
    return ''.join(self._texts[i] for i in np.asarray(ids).tolist())


def word_prompter(before='<user>', after='<model>', word=r' ?\w+|\W'):
  """With a chat template of two marks, or of none."""
  tokenizer = WordTokenizer(word)
  return Prompter(tokenizer, tokenizer.encode(before), tokenizer.encode(after))


def shown(example, prompter):
  """The prompt as text."""
  return prompter.tokenizer.decode(example.tokens)
