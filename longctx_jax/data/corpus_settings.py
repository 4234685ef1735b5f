"""What a corpus is made from: as a config says it, and as a manifest does."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from longctx_jax.config_from_dict import ConfigError, from_config_dict
from longctx_jax.corpus_config import CorpusConfig


def corpus_settings(config: CorpusConfig, seed: int) -> dict[str, Any]:
  """What a corpus is made from, as it comes back from its manifests."""
  settings = {'corpus': dataclasses.asdict(config), 'seed': seed}
  # Where and how a corpus lies is no part of what it is made from.
  del settings['corpus']['prepared'], settings['corpus']['compression']
  return json.loads(json.dumps(settings))  # JSON has no tuples


def settings_there(manifest: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of a manifest, with the defaults of fields that are newer.

  A field that is added does by default what was done before there was one, so
  a corpus that is older than it is still that of the same config.
  """
  try:
    config = from_config_dict(CorpusConfig, manifest['corpus'])
    return corpus_settings(config, manifest['seed'])
  except (ConfigError, KeyError):  # of fields that are gone, or of no corpus
    return dict(manifest)
