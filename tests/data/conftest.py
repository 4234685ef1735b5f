"""Corpora of made-up documents, one for each file of tests."""

import os

import numpy as np
import pytest

from longctx_jax.data.prepare import prepare_corpus
from tests.data.made_texts import WORDS, config_of


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
  """No test outlives a power failure, and waiting for a disk takes long."""
  monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Forty made-up documents of three paragraphs each."""
  rng = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp('texts')
  for i in range(40):
    paragraphs = [' '.join(rng.choice(WORDS, 70)) for _ in range(3)]
    (directory / f'{i}.txt').write_text('\n\n'.join(paragraphs) + '\n')
  return directory


@pytest.fixture(scope='module')
def prepared(texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  return directory, prepare_corpus(config_of(texts), directory, seed=0)
