"""Where what is fetched or built once is kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
  """This user's; it need not exist yet."""
  root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(root) / 'longctx_jax'
