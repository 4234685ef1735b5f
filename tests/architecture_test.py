"""The shape of the code itself: who imports whom, how long files are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'longctx_jax'
MAX_LINES = 400
OURS = ('longctx_jax', 'configs')

# Module -> what of this repository it may import (a trailing dot: all below).
ALLOWED = {
  'longctx_jax.array_types': (),
  'longctx_jax.batch': (),
  'longctx_jax.cache_dir': (),
  'longctx_jax.config_from_dict': (),
  'longctx_jax.corpus_config': ('longctx_jax.config_from_dict',),
  'longctx_jax.directory_lock': ('longctx_jax.config_from_dict',),
  'longctx_jax.last_words': (),
  'longctx_jax.host_watch': (),
  'longctx_jax.goodput': (),
  'longctx_jax.memory_peak': (),
  'longctx_jax.profile_window': (),
  'longctx_jax.hosts': (
    'longctx_jax.config_from_dict',
    'longctx_jax.host_watch',
    'longctx_jax.last_words',
  ),
  'longctx_jax.preemption': ('longctx_jax.hosts',),
  'longctx_jax.data_config': ('longctx_jax.config_from_dict',),
  'longctx_jax.config': (
    'longctx_jax.config_from_dict',
    'longctx_jax.corpus_config',
    'longctx_jax.data_config',
  ),
  'longctx_jax.device_order': ('longctx_jax.config',),
  'longctx_jax.ops.': (
    'longctx_jax.ops.',
    'longctx_jax.array_types',
    'longctx_jax.cache_dir',
  ),
  'longctx_jax.model': (
    'longctx_jax.ops.',
    'longctx_jax.config',
    'longctx_jax.array_types',
  ),
  'longctx_jax.sampling': (
    'longctx_jax.array_types',
    'longctx_jax.config_from_dict',
  ),
  'longctx_jax.text_stream': ('longctx_jax.data.tokenizer',),
  'longctx_jax.cached_model': (
    'longctx_jax.model',
    'longctx_jax.ops.',
    'longctx_jax.sharding',
    'longctx_jax.config',
    'longctx_jax.array_types',
  ),
  'longctx_jax.decode_loop': (
    'longctx_jax.cached_model',
    'longctx_jax.sampling',
    'longctx_jax.sharding',
  ),
  'longctx_jax.generate': (
    'longctx_jax.cached_model',
    'longctx_jax.config',
    'longctx_jax.data.tokenizer',
    'longctx_jax.decode_loop',
    'longctx_jax.sampling',
    'longctx_jax.sharding',
    'longctx_jax.text_stream',
  ),
  'longctx_jax.loss': (
    'longctx_jax.model',
    'longctx_jax.ops.',
    'longctx_jax.batch',
  ),
  'longctx_jax.data.': (
    'longctx_jax.data.',
    'longctx_jax.batch',
    'longctx_jax.cache_dir',
    'longctx_jax.array_types',
    'longctx_jax.corpus_config',
    'longctx_jax.data_config',
    'longctx_jax.config_from_dict',
    'longctx_jax.directory_lock',
    'longctx_jax.progress',
    'longctx_jax.workdir',  # write_atomically, first_difference
  ),
  'longctx_jax.html_page': (
    'longctx_jax.settings_table',
    'longctx_jax.workdir',
  ),
  'longctx_jax.inspection.': (
    'longctx_jax.inspection.',
    'longctx_jax.data.',
    'longctx_jax.ops.',
    'longctx_jax.batch',
    'longctx_jax.config',
    'longctx_jax.config_from_dict',
    'longctx_jax.data_config',
    'longctx_jax.figures',
    'longctx_jax.html_page',
    'longctx_jax.settings_table',
    'longctx_jax.sharding',
    'longctx_jax.workdir',
  ),
  'longctx_jax.plan.': (
    'longctx_jax.plan.',
    'longctx_jax.ops.',
    'longctx_jax.config',
    'longctx_jax.config_from_dict',
    'longctx_jax.figures',
    'longctx_jax.flops',
    'longctx_jax.html_page',
    'longctx_jax.sharding',
    'longctx_jax.train_step',
  ),
  'configs.': ('configs.',),
}
# Module -> what it must not import, directly.
FORBIDDEN = {
  'longctx_jax.data.': ('jax', 'flax', 'optax', 'orbax'),
  'longctx_jax.evals.': ('longctx_jax.recipe', 'longctx_jax.train'),
  'longctx_jax.train': ('longctx_jax.recipe', 'longctx_jax.report'),
  'longctx_jax.train_step': ('longctx_jax.data.', 'longctx_jax.train'),
  'longctx_jax.command_line': ('longctx_jax.recipe', 'longctx_jax.train'),
  'longctx_jax.checkpoint': ('longctx_jax.train', 'longctx_jax.recipe'),
  'longctx_jax.figures': ('longctx_jax.recipe', 'longctx_jax.train'),
}


def python_files(*tops):
  return sorted(
    path for top in tops for path in (ROOT / top).rglob('*.py') if path.exists()
  )


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported_modules(path):
  """Full names of all that a file imports, inside functions too."""
  modules = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        inner = ROOT / node.module.replace('.', '/') / f'{alias.name}.py'
        package = inner.with_suffix('') / '__init__.py'
        whole = inner.exists() or package.exists()
        modules.add(f'{node.module}.{alias.name}' if whole else node.module)
  return modules


def is_under(module, name):
  """`longctx_jax.ops.` holds all below it; `jax` is jax and all below it."""
  return module == name.rstrip('.') or module.startswith(name.rstrip('.') + '.')


def rules_for(module, rules):
  return [
    names
    for prefix, names in rules.items()
    if (is_under(module, prefix) if prefix.endswith('.') else module == prefix)
  ]


CODE = python_files('longctx_jax', 'configs')


def test_there_is_code_to_look_at():
  modules = {module_name(path) for path in CODE}
  assert len(modules) > 30
  for name in [*ALLOWED, *FORBIDDEN]:
    assert any(is_under(module, name) for module in modules), name


@pytest.mark.parametrize('path', CODE, ids=module_name)
def test_imports_point_one_way(path):
  module = module_name(path)
  imported = imported_modules(path)
  ours = {m for m in imported if m.split('.')[0] in OURS}
  for allowed in rules_for(module, ALLOWED):
    for other in ours:
      assert any(is_under(other, name) for name in allowed), other
  for forbidden in rules_for(module, FORBIDDEN):
    for other in imported:
      assert not any(is_under(other, name) for name in forbidden), other


@pytest.mark.parametrize('path', python_files('longctx_jax'), ids=module_name)
def test_only_the_command_line_knows_of_flags_and_config_dicts(path):
  roots = {module.split('.')[0] for module in imported_modules(path)}
  if module_name(path) == 'longctx_jax.command_line':
    assert {'absl', 'ml_collections'} <= roots
  elif module_name(path) in (
    'longctx_jax.__main__',
    'longctx_jax.model_verbs',
    'longctx_jax.plan_verb',
  ):
    assert 'absl' in roots
    assert 'ml_collections' not in roots
  else:
    assert not roots & {'absl', 'ml_collections', 'configs'}


@pytest.mark.parametrize('path', python_files('configs'), ids=module_name)
def test_configs_import_configs_and_ml_collections_alone(path):
  roots = {module.split('.')[0] for module in imported_modules(path)}
  assert roots <= {'configs', 'ml_collections'}


def test_no_imports_go_round_in_a_circle():
  graph = {
    module_name(path): {
      m for m in imported_modules(path) if m.split('.')[0] in OURS
    }
    for path in CODE
  }
  done, on_the_way = set(), []

  def visit(module):
    assert module not in on_the_way, [*on_the_way, module]
    if module not in done:
      on_the_way.append(module)
      for other in sorted(graph.get(module, ())):
        visit(other)
      done.add(on_the_way.pop())

  for module in graph:
    visit(module)


def test_no_file_is_longer_than_400_lines():
  lengths = {
    str(path.relative_to(ROOT)): len(path.read_text().splitlines())
    for path in python_files('longctx_jax', 'configs', 'benchmarks', 'tests')
  }
  assert {p: n for p, n in lengths.items() if n > MAX_LINES} == {}


def calls(path):
  """Called names of a file, as `eval` or `config.get`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func)


@pytest.mark.parametrize('path', CODE, ids=module_name)
def test_no_defaults_hidden_in_code_and_no_eval(path):
  for name in calls(path):
    assert name not in ('eval', 'exec'), name
    assert not re.search(r'(^|\.)(config|cfg|c)\.get$', name), name


def texts_with_paths():
  """(where, text): README and docs, docstrings of configs, launch scripts."""
  for pattern in (
    '*.md',
    'docs/**/*.md',
    'launch/*',
    'longctx_jax/command_line.py',
  ):
    for path in sorted(ROOT.glob(pattern)):
      if path.is_file():
        yield str(path.relative_to(ROOT)), path.read_text()
  for path in python_files('configs'):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ''
    yield str(path.relative_to(ROOT)), docstring


PATH = re.compile(
  r'(?<![\w/.:-])((?:configs|docs|longctx_jax|tests|benchmarks|launch|notebooks)'
  r'/[\w./-]*\w)'
)


@pytest.mark.parametrize(
  ('where', 'text'), list(texts_with_paths()), ids=lambda value: value[:40]
)
def test_every_path_that_is_mentioned_exists(where, text):
  mentioned = [m.rstrip('.') for m in PATH.findall(text)]
  assert [m for m in mentioned if not (ROOT / m).exists()] == []


def test_paths_are_found_in_the_texts():
  found = [m for _, text in texts_with_paths() for m in PATH.findall(text)]
  assert 'configs/longskywork/recipe.py' in found
