"""Eight virtual CPU devices, strict shapes, and a small real corpus."""

import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile much and compute little: half the time is the optimiser's.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
import numpy as np
import pytest
from hypothesis import settings

from longctx_jax.data.prepare import prepare_corpus
from tests import small

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Two programs with collectives in flight on two cores deadlock XLA's CPU
# backend, so a step is waited for before the next one starts.
jax.config.update('jax_cpu_enable_async_dispatch', False)
# Many tests compile the same small programs: once a session is enough.
COMPILED = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', COMPILED.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


# Drawn examples: a few in the default selection, hypothesis' own hundred where
# slow tests run too. No deadlines: a machine may have other work.
settings.register_profile('few', max_examples=25, deadline=None)
settings.register_profile('many', max_examples=100, deadline=None)


def pytest_configure(config):
  settings.load_profile(
    'few' if config.option.markexpr == 'not slow' else 'many'
  )


@pytest.fixture(scope='session')
def corpus_directory(tmp_path_factory):
  """A corpus of some standard-library text, with a 768-piece tokenizer."""
  directory = tmp_path_factory.mktemp('run') / 'c'
  prepare_corpus(small.corpus_config(), directory, seed=0)
  return directory


@pytest.fixture(scope='session')
def corpus(corpus_directory):
  """That of `corpus_directory`, opened."""
  return prepare_corpus(small.corpus_config(), corpus_directory, seed=0)


@pytest.fixture
def rng():
  return np.random.default_rng(0)
