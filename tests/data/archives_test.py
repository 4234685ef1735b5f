"""Archives: downloads are verified and nothing in them is executed.

The package index is a folder in tmp_path: pip takes it through PIP_FIND_LINKS.
"""

import hashlib
import io
import tarfile
import zipfile

import pytest

from longctx_jax.data.archives import (
  ArchiveError,
  PinnedArchive,
  fetch_archive,
  read_members,
)

METADATA = 'Metadata-Version: 2.1\nName: tale\nVersion: 1.0\n'
TALE = 'Once upon a time.\n'


def make_sdist(directory, setup_py):
  path = directory / 'tale-1.0.tar.gz'
  members = {
    'PKG-INFO': METADATA,
    'setup.py': setup_py,
    'texts/b.txt': TALE * 2,
    'texts/a.txt': TALE,
    'texts/a.csv': 'x,y\n',
  }
  with tarfile.open(path, 'w:gz') as sdist:
    for name, text in members.items():
      member = tarfile.TarInfo(f'tale-1.0/{name}')
      member.size = len(text.encode())
      sdist.addfile(member, io.BytesIO(text.encode()))
  return path


def make_wheel(directory):
  path = directory / 'tale-1.0-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as wheel:
    wheel.writestr('tale/b.txt', TALE * 2)
    wheel.writestr('tale/a.txt', TALE)
    wheel.writestr('tale-1.0.dist-info/METADATA', METADATA)
    wheel.writestr(
      'tale-1.0.dist-info/WHEEL',
      'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    )
  return path


def pin(path):
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return PinnedArchive('tale', '1.0', path.name, digest)


@pytest.fixture
def index(tmp_path, monkeypatch):
  directory = tmp_path / 'index'
  directory.mkdir()
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(directory))
  return directory


def test_sdist_is_downloaded_without_running_its_setup(index, tmp_path):
  trace = tmp_path / 'ran'
  archive = pin(
    make_sdist(
      index,
      f'open({str(trace)!r}, "w")\nfrom setuptools import setup'
      '\nsetup(name="tale", version="1.0")\n',
    )
  )
  path = fetch_archive(archive, tmp_path / 'cache')
  assert path.read_bytes() == (index / archive.filename).read_bytes()
  assert not trace.exists()
  # Neither pip's scratch files nor anything unpacked stays behind.
  assert list(path.parent.iterdir()) == [path]


def test_damaged_cache_is_downloaded_again(index, tmp_path):
  archive = pin(make_wheel(index))
  cached = tmp_path / archive.filename
  cached.write_bytes(b'half a download')
  path = fetch_archive(archive, tmp_path)
  assert path == cached
  assert pin(path) == archive


def test_verified_cache_needs_no_index(index, tmp_path):
  archive = pin(make_wheel(index))
  (index / archive.filename).rename(tmp_path / archive.filename)
  assert fetch_archive(archive, tmp_path) == tmp_path / archive.filename


def test_archive_with_another_hash_is_refused(index, tmp_path):
  archive = pin(make_wheel(index))._replace(sha256='0' * 64)
  with pytest.raises(ArchiveError, match=archive.filename):
    fetch_archive(archive, tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []


def test_unknown_package_is_one_clear_line(index, tmp_path):
  archive = PinnedArchive('tale', '1.0', 'tale-1.0.tar.gz', '0' * 64)
  with pytest.raises(ArchiveError) as raised:
    fetch_archive(archive, tmp_path / 'cache')
  assert str(raised.value) == (
    'cannot get tale-1.0.tar.gz: No matching distribution found for tale==1.0'
  )


def test_wheel_and_sdist_members_come_in_order_of_name(tmp_path):
  expected = [('a', TALE.encode()), ('b', 2 * TALE.encode())]
  wheel, sdist = make_wheel(tmp_path), make_sdist(tmp_path, '')
  assert list(read_members(wheel, r'tale/(.+)\.txt')) == expected
  assert list(read_members(sdist, r'[^/]+/texts/(.+)\.txt')) == expected
