"""Which files a path means, text files, and source trees as documents."""

import os
from pathlib import Path

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import Document, Problem
from longctx_jax.data.readers import list_parts, read_part
from longctx_jax.data.source_files import find_files


def write(root, **texts):
  for name, text in texts.items():
    path = root / name.replace('__', '/').replace('_', '.')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def read(kind, path, **fields):
  source = TextSource(kind, 0, str(path), **fields)
  parts = list_parts(source, 'web', Path())
  return [item for part in parts for item in read_part(part)]


def names(path, suffixes=('.txt',)):
  source = TextSource('text_files', 0, str(path))
  return [name for name, _ in find_files(source, suffixes)]


def test_a_path_is_a_directory_a_file_or_a_pattern(tmp_path):
  write(tmp_path, a_txt='', b__a_txt='', b__c__d_TXT='', b__e_md='', f_md='')
  assert names(tmp_path) == ['a.txt', 'b/a.txt', 'b/c/d.TXT']
  assert names(tmp_path / 'f.md') == ['f.md']
  assert names(tmp_path / '*' / '*.md') == ['b/e.md']
  assert names(tmp_path / '**' / 'a.txt') == ['a.txt', 'b/a.txt']
  # Directories that match stand for the files below them.
  assert names(tmp_path / 'b*') == ['b/a.txt', 'b/c/d.TXT']
  assert names(tmp_path, ('.md', '.txt'))[-1] == 'f.md'


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('*.csv', 'nothing matches this pattern'),
    ('b', r'has no \*.txt files in it'),
    ('nowhere', 'no such file or directory'),
  ],
)
def test_a_path_without_files_is_named(tmp_path, path, message):
  write(tmp_path, b__a_md='')
  with pytest.raises(ConfigError, match=message) as raised:
    names(tmp_path / path)
  assert f'{tmp_path / path}' in str(raised.value)


def test_hidden_files_are_left_out_and_links_are_followed_once(tmp_path):
  write(
    tmp_path, texts__a_txt='', texts___git__b_txt='', else__c_txt='', d_txt=''
  )
  root = tmp_path / 'texts'
  (root / '.hidden.txt').write_text('')
  (root / 'loop').symlink_to(root)
  (root / 'there').symlink_to(tmp_path / 'else')
  (root / 'there_again').symlink_to(tmp_path / 'else')
  (root / 'linked.txt').symlink_to(tmp_path / 'd.txt')
  (root / 'dangling.txt').symlink_to(tmp_path / 'gone.txt')
  assert names(root) == ['a.txt', 'linked.txt', 'there/c.txt']
  assert names(root / '.git') == ['b.txt']


def test_odd_file_names_make_names_that_can_be_stored(tmp_path):
  path = os.path.join(os.fsencode(tmp_path), b'caf\xe9.txt')
  with open(path, 'w') as file:
    file.write('text')
  (document,) = read('text_files', tmp_path)
  assert document.name == 'text_files/caf\\udce9.txt'


def test_each_text_file_is_a_document_or_a_problem(tmp_path):
  write(
    tmp_path,
    a_txt='one\r\ntwo',
    b_txt=b'\xef\xbb\xbfmarked',
    c_txt='',
    d_txt=b'caf\xe9',
    e_txt='x' * 101,
    f_txt='\u00e9' * 100,
    g_rst='not asked for',
  )
  items = read('text_files', tmp_path, max_document_chars=100)
  found = [
    item.kind if isinstance(item, Problem) else item.text for item in items
  ]
  assert found == [
    *('one\r\ntwo', 'marked', 'empty', 'bad_utf8', 'too_large', '\u00e9' * 100),
  ]
  assert [item.name for item in items] == [
    f'text_files/{name}.txt' for name in 'abcdef'
  ]
  assert f'{tmp_path}/d.txt: byte 3 of it is not UTF-8' in items[3].message
  (item,) = read('text_files', tmp_path, suffixes=('.rst',))
  assert item.text == 'not asked for'
  texts = read('text_files', tmp_path / 'd.txt', errors='replace')
  assert [text.text for text in texts] == ['caf\ufffd']


def test_a_file_too_large_is_not_read(tmp_path):
  # Sparse: more than this machine could hold.
  with open(tmp_path / 'a.txt', 'wb') as file:
    file.truncate(1 << 40)
  (problem,) = read('text_files', tmp_path)
  assert problem.kind == 'too_large'


def test_a_repository_is_its_files_in_order_below_their_names(tmp_path):
  write(
    tmp_path,
    one__b_py='b = 1\n\n\n',
    one__a__z_py='z = 1\n',
    one___git__config_py='no',
    one__data_json='no',
    one__empty_py='',
    two__read_me_md='Read me.',
  )
  one, two = read('repositories', tmp_path)
  assert one == Document(
    'repositories/one',
    'web',
    '# a/z.py\nz = 1\n\n# b.py\nb = 1\n\n# empty.py\n\n\n',
  )
  assert (two.name, two.text) == (
    'repositories/two',
    '# read.me.md\nRead me.\n\n',
  )
  (one, two) = read('repositories', tmp_path, suffixes=('.json',))
  assert one.text == '# data.json\nno\n\n'
  assert two.kind == 'empty'


def test_a_path_to_repositories_is_one_or_holds_them_or_matches(tmp_path):
  write(tmp_path, me__one__a_py='1', me__two__a_py='2', loose_py='no')

  def found(path):
    return [item.name for item in read('repositories', path)]

  assert found(tmp_path) == ['repositories/me']
  assert found(tmp_path / '*' / '*') == [
    *('repositories/me/one', 'repositories/me/two'),
  ]
  (tmp_path / 'me' / 'one' / '.git').mkdir()
  assert found(tmp_path / 'me' / 'one') == ['repositories/one']
  with pytest.raises(ConfigError, match='has no directories in it'):
    found(tmp_path / 'me' / 'two')


def test_a_bad_file_is_left_out_of_its_repository_and_named(tmp_path):
  write(tmp_path, one__a_py='a = 1', one__b_py=b'# caf\xe9', one__c_py='c = 1')
  problem, document = read('repositories', tmp_path)
  assert (problem.name, problem.kind) == ('repositories/one/b.py', 'bad_utf8')
  assert f'{tmp_path}/one/b.py: byte 5' in problem.message
  assert document.text == '# a.py\na = 1\n\n# c.py\nc = 1\n\n'
  (document,) = read('repositories', tmp_path, errors='replace')
  assert '# b.py\n# caf\ufffd\n' in document.text


@pytest.mark.parametrize(
  'content', [b'\x7fELF\0\0', 'a = 1\n'.encode('utf-16')]
)
def test_a_binary_file_of_a_repository_is_counted(tmp_path, content):
  write(tmp_path, one__a_py='a = 1', one__b_c=content, one__c_png=b'\0')
  problem, document = read('repositories', tmp_path, errors='replace')
  assert (problem.name, problem.kind) == ('repositories/one/b.c', 'binary')
  assert f'{tmp_path}/one/b.c: it has NUL bytes' in problem.message
  assert document.text == '# a.py\na = 1\n\n'


def test_a_repository_too_large_is_one_problem(tmp_path):
  write(tmp_path, one__a_py='a' * 60, one__b_py='b' * 60)
  write(tmp_path, one__c_py=b'\xe9 would be a problem of its own')
  write(tmp_path, two__a_py='a' * 60)
  large, document = read('repositories', tmp_path, max_document_chars=100)
  assert (large.name, large.kind) == ('repositories/one', 'too_large')
  assert str(tmp_path / 'one') in large.message
  assert document.name == 'repositories/two'
