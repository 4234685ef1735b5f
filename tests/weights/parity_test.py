"""Against transformers itself; skipped without the extra [parity]."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from longctx_jax.data.jinja_chat import read_jinja_chat
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.weights.convert import convert
from tests.data.jinja_chat_test import CHATML
from tests.data.small_tokenizers import write_folder
from tests.weights import tiny_models

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def random_model(name):
  config = transformers.AutoConfig.for_model(**tiny_models.config_of(name))
  torch.manual_seed(3)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model


def logits_of(model):
  with torch.no_grad():
    return model(torch.tensor(tiny_models.tokens()).long()).logits.numpy()


def saved(model, folder):
  """Its folder with a tokenizer, which conversion carries along."""
  model.save_pretrained(folder, max_shard_size='20KB')
  words = {f'w{i}': i for i in range(tiny_models.BASE['vocab_size'])}
  tokenizer = Tokenizer(models.WordLevel(words, unk_token='w0'))
  tokenizer.save(str(folder / 'tokenizer.json'))
  return folder


@pytest.mark.parametrize('name', tiny_models.FAMILIES)
def test_logits_are_equal_and_the_round_trip_is_exact(name, tmp_path):
  model = random_model(name)
  expected = logits_of(model)
  folder = saved(model, tmp_path / 'theirs')
  found = tiny_models.our_logits(folder)
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, atol=1e-4)
  convert(str(folder), tmp_path / 'ours')
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert type(again).__name__ in ('LlamaForCausalLM', 'Qwen2ForCausalLM')
  np.testing.assert_allclose(logits_of(again.eval()), expected, atol=1e-5)
  state = again.state_dict()
  for key, value in model.state_dict().items():
    assert torch.equal(state[key], value), key


@pytest.mark.parametrize('system', ['', 'Be brief.'])
def test_chat_prompts_are_those_of_transformers(tmp_path, system):
  folder = write_folder(
    tmp_path,
    bos_token='<|begin_of_text|>',
    chat_template=CHATML,
    tokenizer_class='PreTrainedTokenizerFast',
  )
  messages = [
    {'role': 'user', 'content': 'What is 2 + 2?'},
    {'role': 'assistant', 'content': 'It is 4.'},
    {'role': 'user', 'content': 'Hello there, how are you?'},
  ]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  expected = theirs.apply_chat_template(messages, add_generation_prompt=True)
  found = read_jinja_chat(folder, load_tokenizer(folder)).prompt(messages)
  assert found.tolist() == expected['input_ids']


def test_skywork_is_read_without_running_its_code(tmp_path):
  model = random_model('llama')
  folder = saved(model, tmp_path / 'theirs')
  fields = json.loads((folder / 'config.json').read_text())
  fields |= {
    'model_type': 'skywork',
    'architectures': ['SkyworkForCausalLM'],
    'auto_map': {'AutoConfig': 'configuration_skywork.SkyworkConfig'},
  }
  (folder / 'config.json').write_text(json.dumps(fields))
  (folder / 'configuration_skywork.py').write_text('raise SystemExit(9)')
  convert(str(folder), tmp_path / 'ours')
  shutil.rmtree(folder)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  np.testing.assert_allclose(logits_of(again), logits_of(model), atol=1e-5)
