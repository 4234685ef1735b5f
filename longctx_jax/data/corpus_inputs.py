"""What a corpus is made from, looked at before hours of reading."""

import contextlib
from collections.abc import Iterator

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data.conversation_files import LeftOut, read_conversations
from longctx_jax.data.instructions import check_kind


def check_inputs(config: CorpusConfig) -> None:
  """Refuses what would end the work after all documents are tokenised.

  Of conversation files, the first conversation is read.

  Raises:
    ConfigError: no documents are asked for, or conversations of an unknown
      kind; or a path is empty, or no conversation is at it, or the first file
      is of no known shape.
  """
  if not config.sources:
    raise ConfigError(
      'corpus.sources names none: every corpus needs documents, as evaluations'
      ' hide needles in those that are held out. Give some beside the'
      ' conversations, they need not be in data.mixture'
    )
  for kind in config.conversations:
    check_kind(kind)
  for domain, source in config.sources.items():
    if source.takes_path and not source.path:
      raise ConfigError(
        f"corpus.sources.{domain}.path='': say where its texts are, a file, a"
        ' directory or a pattern'
      )
  for name, files in config.conversation_files.items():
    field, left_out = f'corpus.conversation_files.{name}', LeftOut()
    if next(read_conversations(files, field, left_out), None) is None:
      skipped = ', '.join(f'{n} {kind}' for kind, n in left_out.records.items())
      raise ConfigError(
        f'{field}.path={files.path!r}: no conversation is in it'
        f' ({skipped or "it is empty"})'
      )


@contextlib.contextmanager
def naming_source(domain: str) -> Iterator[None]:
  """Puts the name of a source before what is said of one of its fields."""
  try:
    yield
  except ConfigError as error:
    raise type(error)(f'corpus.sources.{domain}: {error}') from error
