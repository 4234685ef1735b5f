"""metrics.jsonl: one line a step, through kills and restarts."""

import json

from longctx_jax.metrics import MetricsWriter, read_metrics


def write_steps(directory, steps, first_step=0, loss=1.0):
  with MetricsWriter(directory, first_step) as writer:
    for step in steps:
      writer.write(step, {'loss': loss + step})


def test_what_is_written_is_read(tmp_path):
  write_steps(tmp_path, range(3))
  assert read_metrics(tmp_path / 'metrics.jsonl') == [
    {'step': step, 'loss': 1.0 + step} for step in range(3)
  ]
  assert list((tmp_path / 'tensorboard').glob('events.*'))


def test_a_file_that_is_not_there_has_no_metrics(tmp_path):
  assert read_metrics(tmp_path / 'metrics.jsonl') == []


def test_lines_of_steps_to_be_done_again_are_dropped(tmp_path):
  write_steps(tmp_path, range(6))
  write_steps(tmp_path, range(4, 6), first_step=4, loss=100.0)
  records = read_metrics(tmp_path / 'metrics.jsonl')
  assert [r['step'] for r in records] == [0, 1, 2, 3, 4, 5]
  assert [r['loss'] for r in records] == [1, 2, 3, 4, 104, 105]


def test_a_line_cut_off_by_a_kill_is_dropped_and_appending_goes_on(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write_steps(tmp_path, range(3))
  path.write_text(path.read_text() + '{"step": 3, "lo')
  assert [r['step'] for r in read_metrics(path)] == [0, 1, 2]
  write_steps(tmp_path, [3, 4], first_step=3)
  # Every line is whole again, for readers of their own.
  lines = path.read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [0, 1, 2, 3, 4]


def test_flushed_lines_are_on_disk_while_the_run_goes_on(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(0, {'loss': 2.0})
    writer.flush()
    assert read_metrics(tmp_path / 'metrics.jsonl') == [
      {'step': 0, 'loss': 2.0}
    ]
