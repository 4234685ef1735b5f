"""Eight virtual CPU devices, strict shapes, and a small real corpus."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import pytest

from longctx_jax.data.prepare import prepare_corpus
from tests import small

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Two programs with collectives in flight on two cores deadlock XLA's CPU
# backend, so a step is waited for before the next one starts.
jax.config.update('jax_cpu_enable_async_dispatch', False)


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  """A corpus of some standard-library text, with a 512-piece tokenizer."""
  config = small.corpus_config()
  return prepare_corpus(config, tmp_path_factory.mktemp('run') / 'c', seed=0)


@pytest.fixture
def rng():
  return np.random.default_rng(0)
