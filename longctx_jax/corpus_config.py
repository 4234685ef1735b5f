"""Typed, frozen configuration of a corpus; see `config`."""

import dataclasses
from typing import Literal

from longctx_jax.config_from_dict import ConfigError, check_at_least

# Kinds of source whose documents are records with named fields.
_RECORDS = ('jsonl', 'parquet', 'hf_dataset', 'tfds', 'array_record')
# Field of a source -> the kinds that have a use for it.
_KINDS_WITH = {
  'path': ('text_files', 'repositories', *_RECORDS),
  'suffixes': ('text_files', 'repositories'),
  'text_field': _RECORDS,
  'name_field': _RECORDS,
  'split': ('hf_dataset', 'tfds'),
}


@dataclasses.dataclass(frozen=True)
class TextSource:
  """One domain of real documents. Kinds: see `data/readers.py`."""

  kind: Literal[
    *('stdlib', 'packages', 'books', 'docs', 'text_files', 'repositories'),
    *_RECORDS,
  ]
  max_chars: int
  path: str = ''  # a file, a directory or a pattern such as texts/**/*.jsonl
  # Which files count; () takes what is usual for the kind.
  suffixes: tuple[str, ...] = ()
  # Field of a record that holds its text; '' if an ArrayRecord is the text.
  text_field: str = 'text'
  # Field that names a record; '' names it by its file and place.
  name_field: str = ''
  split: str = ''
  # What to do with bytes that are not UTF-8: a problem, or U+FFFD for each.
  errors: Literal['problem', 'replace'] = 'problem'
  # Whether lines end in \n alone whatever they ended in, or as they did.
  line_ends: Literal['normalise', 'keep'] = 'normalise'
  # What to do with documents that cannot be read: count them, or stop.
  on_problem: Literal['skip', 'stop'] = 'skip'
  # Longer documents are problems: it bounds the memory that one takes. ours:
  # twice the longest installed package we met.
  max_document_chars: int = 50_000_000

  def __post_init__(self):
    check_at_least(self, 0, 'max_chars')
    check_at_least(self, 1, 'max_document_chars')
    for field, kinds in _KINDS_WITH.items():
      default = type(self).__dataclass_fields__[field].default
      if self.kind not in kinds and getattr(self, field) != default:
        raise ConfigError(
          f'{field}={getattr(self, field)!r}: a source of kind {self.kind} has'
          f' no use for it; {field} belongs to {", ".join(kinds)}'
        )
    if not self.text_field and self.kind != 'array_record':
      raise ConfigError(
        "text_field='': name the field that holds the text (only a record of"
        ' kind array_record can be the text itself)'
      )
    if not self.text_field and self.name_field:
      raise ConfigError(
        f"name_field={self.name_field!r}: with text_field='' a record is its"
        ' text and has no other field'
      )
    for suffix in self.suffixes:
      if not suffix.startswith('.'):
        raise ConfigError(f'suffixes: {suffix!r} must begin with a dot')

  @property
  def takes_path(self) -> bool:
    """Whether its documents are read from `path`."""
    return self.kind in _KINDS_WITH['path']


@dataclasses.dataclass(frozen=True)
class ConversationFiles:
  """Conversations from JSON files; see `data/conversation_files.py`."""

  path: str  # a file, or a directory of *.jsonl and *.json (.gz, .zst)
  # 'auto' tells it from the keys of each file's first record.
  shape: Literal['auto', 'messages', 'ultrachat', 'alpaca', 'sharegpt'] = 'auto'
  # What to do with records that are no conversation: count them, or stop.
  on_problem: Literal['skip', 'stop'] = 'skip'
  # With one that is too long: leave it out; keep the turns that fit, from the
  # first on, or as much as fits of the first one's answer; or stop.
  on_long: Literal['drop', 'truncate', 'stop'] = 'drop'
  # Longest one kept, in tokens; 0: as corpus.max_conversation_len says. Long
  # ones are for a stage of long rows, beside the short ones of another stage.
  max_len: int = 0

  def __post_init__(self):
    check_at_least(self, 0, 'max_len')


@dataclasses.dataclass(frozen=True)
class DocumentFilters:
  """Which documents are stored, and how much of each."""

  # Of documents with the same text, in all sources, only the first is kept.
  deduplicate: bool = False
  # Characters of the shortest text that is kept. ours: shorter ones are stubs,
  # such as an `__init__.py` of one import.
  min_chars: int = 200
  # Lengths of a stored document with its begin and end tokens; 0: no limit.
  min_tokens: int = 0
  max_tokens: int = 0
  too_long: Literal['cut', 'drop'] = 'cut'

  def __post_init__(self):
    check_at_least(self, 0, 'min_chars', 'min_tokens', 'max_tokens')
    if 0 < self.max_tokens < self.min_tokens:
      raise ConfigError(
        f'min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}:'
        ' no document has such a length'
      )

  @property
  def least_chars(self) -> int:
    """`min_chars`, and 1 at least: a text of nothing is never stored."""
    return max(self.min_chars, 1)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """Documents, their tokenizer, and the instruction data made from them."""

  sources: dict[str, TextSource]
  vocab_size: int
  heldout_frac: float
  # How many conversations of each kind to make: see `data/instructions.py`. To
  # pretrain on documents alone there need be none, nor conversation_files.
  conversations: dict[str, int]
  # Longest conversation kept, in tokens.
  max_conversation_len: int
  # '' trains a SentencePiece model of `vocab_size` on the corpus. Else such a
  # model, a tokenizer.json, or a folder that holds either.
  tokenizer_path: str = ''
  # Control tokens that a given tokenizer gets behind its own, in this order.
  added_tokens: tuple[str, ...] = ()
  # Begin and end of a document; '' is what the given tokenizer calls so.
  bos_token: str = ''
  eos_token: str = ''
  # What stored documents begin and end with.
  bos: Literal['document', 'none'] = 'document'
  eos: Literal['document', 'none'] = 'document'
  # What stands around the turns of conversations: `data/chat_templates.py`.
  chat_template: Literal['plain', 'chatml', 'llama3', 'skywork'] = 'plain'
  # Name -> conversations to add to those that are made from documents.
  conversation_files: dict[str, ConversationFiles] = dataclasses.field(
    default_factory=dict
  )
  filters: DocumentFilters = DocumentFilters()
  # How the stores lie on disk: 'none' is read fastest, 'zstd' takes half the
  # room or less. Runs may take a corpus that is packed either way.
  compression: Literal['none', 'zstd'] = 'none'
  # A corpus that `longctx prepare` made of these settings; '' makes one in the
  # run's directory.
  prepared: str = ''

  def __post_init__(self):
    if not self.tokenizer_path:
      for field in ('added_tokens', 'bos_token', 'eos_token'):
        if getattr(self, field):
          raise ConfigError(
            f'{field}={getattr(self, field)} is for a tokenizer that is given:'
            ' set tokenizer_path; one that is trained has all it needs'
          )
    twice = sorted(set(self.conversations) & set(self.conversation_files))
    if twice:
      raise ConfigError(
        f'conversation_files.{twice[0]}: conversations has a kind of this name:'
        ' choose another'
      )
    if not 0 < self.heldout_frac < 1:
      raise ConfigError(
        f'heldout_frac must lie in (0, 1), got {self.heldout_frac}'
      )

  @property
  def asks_for_conversations(self) -> bool:
    """Whether there are to be any beside the documents."""
    return any(self.conversations.values()) or bool(self.conversation_files)

  def longest_conversation(self, kind: str) -> tuple[str, int]:
    """(field, tokens): what limits conversations of a kind, and how long."""
    files = self.conversation_files
    if kind in files and files[kind].max_len:
      return f'conversation_files.{kind}.max_len', files[kind].max_len
    return 'max_conversation_len', self.max_conversation_len
