"""The store on disk: pages of tokens in shards, an index, a manifest.

    store/documents-00000-of-00002.array_record   pages, then names
    store/documents-00001-of-00002.array_record
    store/offsets.npy      int64 [documents + 1], tokens before each document
    store/domains.npy      uint16 [documents], into the manifest's domains
    store/checksums.npy    uint32 [records], CRC-32 of every record
    store/places.npy       int64 [2, records], see `record_places.py`; not there
                           if records are compressed
    store/manifest.json    what was counted, settings, fingerprints, CRC-32 of
                           the above

A shard holds its documents end to end, cut into pages wherever a page is full:

    documents   a a a a a b c c c c c c       page_tokens 4
    records     [a a a a] [a b c c] [c c c c] [names of a, b, c]

so a slice costs the pages it touches, however long its document is, and a short
document costs no record of its own. The index is a few flat arrays that are
mapped into memory: opening 10^8 documents parses nothing, and the processes of
one machine share it.

ArrayRecord finds most flipped bits by hashes of its own, but takes a damaged
footer for an empty file, and cannot know a shard that lies under another's
name. The checksums bind every record to its place.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longctx_jax.data.counts import Counts, check_accounts

FORMAT_VERSION = 2
MANIFEST = 'manifest.json'
OFFSETS, DOMAINS, CHECKSUMS = 'offsets.npy', 'domains.npy', 'checksums.npy'
PLACES = 'places.npy'

# How records may be packed, as ArrayRecord calls it. ours: uncompressed ones
# are read where they lie. Of snappy, zstd and brotli, zstd 3 takes half the
# bytes of none, is read at 260M tokens a second and written at 70M; zstd 1 is
# no faster to read.
WRITER_OPTIONS = {
  'none': 'group_size:1,uncompressed',
  'zstd': 'group_size:1,zstd:3',
}
# Tokens of a page. Rows of short documents read a page or two for each of them.
# ours: by benchmarks/store.py on tokenised source code, a compressed page of
# 4096, 8192, 16,384 tokens is read in 21, 32, 57 us and takes 1.04, 1.00, 0.95
# bytes a token. Of uncompressed ones, the shorter the page, the less is read
# beside a short document; in a prototype 2048 tokens beat 4096 and 8192.
PAGE_TOKENS = {'none': 2048, 'zstd': 8192}
# ours: 1024 names are about 40 KB before compression, a few pages' worth.
NAMES_PER_RECORD = 1024
# No read-ahead and no threads of its own: a page costs no more than a page, and
# a forked child misses nothing.
READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
AGAIN = 'Copy the store here again, or prepare the corpus again'


# What a page's tokens may be: the first of these that they all fit into.
TOKEN_DTYPES = np.dtype('<u2'), np.dtype('<i4')


class StoreError(ValueError):
  """A store that cannot be read or replaced; the message names the file."""


class ShardCounts(NamedTuple):
  """What the manifest says of one shard."""

  documents: int
  tokens: int
  records: int  # pages, then records of names
  bytes: int
  sha256: str  # of the content, not of the file


class StoreIndex(NamedTuple):
  """All of a store but the records of its shards."""

  offsets: np.ndarray  # int64 [documents + 1]
  domain_ids: np.ndarray  # uint16 [documents]
  checksums: np.ndarray  # uint32 [records], of all shards
  places: np.ndarray | None  # int64 [2, records], of all shards if of any
  domain_names: tuple[str, ...]
  shards: tuple[ShardCounts, ...]
  page_tokens: int
  settings: dict[str, Any]
  fingerprint: str
  tokenizer_fingerprint: str
  # What became of the documents of each domain; none if nobody has counted.
  accounts: dict[str, Counts]


def shard_name(i: int, num_shards: int) -> str:
  """File name of shard i."""
  return f'documents-{i:05d}-of-{num_shards:05d}.array_record'


def num_records(documents: int, tokens: int, page_tokens: int) -> int:
  """Records of a shard: its pages, then its names."""
  return -(-tokens // page_tokens) - (-documents // NAMES_PER_RECORD)


def page_record(tokens: np.ndarray, mask: np.ndarray) -> bytes:
  """[n] tokens and [n] loss mask as the bytes of a page, little-endian.

  2 bytes a token if all of them fit, else 4; then 1 bit a token of the mask,
  unless all of the page is trained on. The number of bytes tells which.
  """
  dtype = '<u2' if tokens.max() < 65_536 else '<i4'
  content = tokens.astype(dtype).tobytes()
  return content if mask.all() else content + np.packbits(mask).tobytes()


def page_from_record(
  record: bytes, length: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """Tokens (uint16 or int32) and loss mask, None if all is trained on.

  Raises:
    ValueError: these are not the bytes of a page of `length` tokens.
  """
  mask_bytes = -(-length // 8)
  for dtype in TOKEN_DTYPES:
    rest = len(record) - length * dtype.itemsize
    if rest in (0, mask_bytes):
      tokens = np.frombuffer(record, dtype, length)
      if not rest:
        return tokens, None
      packed = np.frombuffer(record, np.uint8, offset=tokens.nbytes)
      return tokens, np.unpackbits(packed, count=length).astype(bool)
  raise ValueError(f'{len(record)} bytes are no page of {length} tokens')


def write_index(directory: Path, index: StoreIndex) -> None:
  """Writes the arrays and, last of all, the manifest.

  Raises:
    ValueError: the accounts are not those of the documents.
  """
  domains = _domain_counts(index)
  _check_accounts(index.accounts, domains)
  arrays = {
    OFFSETS: index.offsets,
    DOMAINS: index.domain_ids,
    CHECKSUMS: index.checksums,
  }
  if index.places is not None:
    arrays[PLACES] = index.places
  for name, array in arrays.items():
    _save(directory / name, array)
  manifest = {
    'format_version': FORMAT_VERSION,
    'fingerprint': index.fingerprint,
    'tokenizer_fingerprint': index.tokenizer_fingerprint,
    'page_tokens': index.page_tokens,
    'documents': len(index.domain_ids),
    'tokens': int(index.offsets[-1]),
    'domains': domains,
    'counts': {name: each.as_dict() for name, each in index.accounts.items()},
    'shards': [shard._asdict() for shard in index.shards],
    'files': {name: _file_checksum(directory / name) for name in arrays},
    'settings': index.settings,
  }
  # As it comes back: JSON has no tuples, and no keys but strings.
  manifest = json.loads(json.dumps(manifest))
  manifest['checksum'] = _manifest_checksum(manifest)
  text = json.dumps(manifest, indent=1)
  (directory / MANIFEST).write_text(text, encoding='utf-8')


def _save(path, array):
  # As np.save does, which says of a full disk only how much it wrote.
  with path.open('wb') as file:
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(array.data)


def _domain_counts(index):
  num_domains = len(index.domain_names)
  documents = np.bincount(index.domain_ids, minlength=num_domains)
  # Floats would lose tokens beyond 2^53 of a domain: there are none so large.
  tokens = np.bincount(index.domain_ids, np.diff(index.offsets), num_domains)
  return [
    {'name': name, 'documents': int(d), 'tokens': int(t)}
    for name, d, t in zip(index.domain_names, documents, tokens, strict=True)
  ]


def _check_accounts(accounts, domains):
  if accounts:
    stored = {domain['name']: domain['documents'] for domain in domains}
    check_accounts(accounts, stored)


def read_index(directory: Path) -> StoreIndex:
  """Maps the arrays into memory, after comparing all of it to its checksums.

  Raises:
    StoreError: a file is missing, damaged, or of another format version.
  """
  manifest = _read_manifest(directory / MANIFEST)
  accounts = {
    name: Counts.from_dict(counts)
    for name, counts in manifest.get('counts', {}).items()
  }
  try:
    _check_accounts(accounts, manifest['domains'])
  except ValueError as error:
    raise StoreError(f'{directory / MANIFEST}: {error}. {AGAIN}') from error
  arrays = {}
  # Stores that were written before there were places go without.
  places = [PLACES] if PLACES in manifest['files'] else []
  for name in (OFFSETS, DOMAINS, CHECKSUMS, *places):
    path = directory / name
    try:
      found = _file_checksum(path)
      if found != manifest['files'][name]:
        raise StoreError(
          f'{path} is damaged: its checksum is {found}, and'
          f' {manifest["files"][name]} in {MANIFEST}. {AGAIN}'
        )
      arrays[name] = np.load(path, mmap_mode='r')
    except OSError as error:
      raise StoreError(
        f'cannot read the store {path}: {error.strerror}. {AGAIN}'
      ) from error
  return StoreIndex(
    offsets=arrays[OFFSETS],
    domain_ids=arrays[DOMAINS],
    checksums=arrays[CHECKSUMS],
    places=arrays.get(PLACES),
    domain_names=tuple(domain['name'] for domain in manifest['domains']),
    shards=tuple(ShardCounts(**shard) for shard in manifest['shards']),
    page_tokens=manifest['page_tokens'],
    settings=manifest['settings'],
    fingerprint=manifest['fingerprint'],
    tokenizer_fingerprint=manifest['tokenizer_fingerprint'],
    accounts=accounts,
  )


def _read_manifest(path) -> dict[str, Any]:
  try:
    manifest = json.loads(path.read_bytes())
    version = manifest['format_version']
  except OSError as error:
    raise StoreError(
      f'cannot read the store {path}: {error.strerror}'
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise StoreError(
      f'{path} is damaged: it is no manifest ({error!r}). {AGAIN}'
    ) from error
  if version != FORMAT_VERSION:
    raise StoreError(
      f'{path} has format version {version}, and this program reads'
      f' {FORMAT_VERSION}. Prepare the corpus again'
    )
  if manifest.get('checksum') != (found := _manifest_checksum(manifest)):
    raise StoreError(
      f'{path} is damaged: its checksum is {found}, and'
      f' {manifest.get("checksum")} was written. {AGAIN}'
    )
  return manifest


def _manifest_checksum(manifest) -> int:
  """CRC-32 of all the fields but itself, however they are laid out."""
  rest = {key: manifest[key] for key in manifest if key != 'checksum'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _file_checksum(path) -> int:
  checksum = 0
  with path.open('rb') as file:
    while chunk := file.read(1 << 22):
      checksum = zlib.crc32(chunk, checksum)
  return checksum
