"""Tasks: all parts once, of about one size, and few enough to be open."""

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data import prepare_tasks
from longctx_jax.data.prepare_tasks import Work, list_tasks
from longctx_jax.data.readers import list_parts
from tests.data.large_corpus import config_of, write_texts


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


def parts_of(tasks, source):
  return [
    part for task in tasks if task.source == source for part in task.parts
  ]


def test_tasks_hold_every_part_once_and_in_order(texts):
  config = config_of(texts)
  tasks = list_tasks(config, texts, task_bytes=5000)
  assert [task.source for task in tasks] == sorted(t.source for t in tasks)
  for number, (domain, source) in enumerate(config.sources.items()):
    listed = list_parts(source, domain, texts, part_bytes=5000)
    assert parts_of(tasks, number) == listed
  # Files are as long as they are, and a task ends where it is full.
  sizes = [
    [(texts / 'files' / p.path.split('/')[-1]).stat().st_size for p in t.parts]
    for t in tasks
    if t.source == 0
  ]
  assert all(sum(task) >= 5000 for task in sizes[:-1])
  assert all(sum(task[:-1]) < 5000 for task in sizes)
  assert max(map(len, sizes)) > 1


def test_there_are_no_more_tasks_than_shards_to_hold_open(texts, monkeypatch):
  config = config_of(texts)
  assert len(list_tasks(config, texts, task_bytes=1000)) > 30
  monkeypatch.setattr(prepare_tasks, 'MAX_TASKS', 12)
  tasks = list_tasks(config, texts, task_bytes=1000)
  assert 6 <= len(tasks) <= 12


def test_a_result_is_whole_or_not_there(tmp_path):
  work = Work(tmp_path)

  class Unpicklable:
    def __reduce__(self):
      raise RuntimeError('half way')

  work.save('scan', 3, 'result')
  with pytest.raises(RuntimeError, match='half way'):
    work.save('scan', 4, ['much', Unpicklable()])
  assert work.has('scan', 3)
  assert work.load('scan', 3) == 'result'
  assert not work.has('scan', 4)
  assert work.saved('scan') == [3]
  assert [path.name for path in (tmp_path / 'work' / 'scan').iterdir()] == [
    '00003'
  ]


def test_a_result_that_a_power_failure_has_damaged_is_named(tmp_path):
  work = Work(tmp_path / 'c.partial')
  work.save('scan', 3, list(range(1000)))
  assert work.load('scan', 3) == list(range(1000))
  path = tmp_path / 'c.partial' / 'work' / 'scan' / '00003'
  for content in (b'', bytes(path.stat().st_size), path.read_bytes()[:99]):
    path.write_bytes(content)
    with pytest.raises(
      ConfigError, match=r'00003 is damaged .*remove .*c\.par'
    ):
      work.load('scan', 3)
