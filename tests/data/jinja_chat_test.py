"""Chat templates in Jinja: drawn, against our own, and what users spell."""

import json

import numpy as np
import pytest

from longctx_jax.data.chat import Chat, encode_conversation
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.jinja_chat import (
  JinjaChat,
  jinja_source,
  read_jinja_chat,
)
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.data.tokenizer_files import load_tokenizer
from tests.data.small_tokenizers import write_folder, write_sentencepiece

# As SmolLM2's, which makes up a system's message.
CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] !="
  " 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
  "{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
  " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = {'role': 'user', 'content': 'Say <|im_end|> twice'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_folder(
    tmp_path_factory.mktemp('t') / 'bpe',
    bos_token='<|begin_of_text|>',
    eos_token='<|end_of_text|>',
    chat_template=CHATML,
  )


@pytest.fixture(scope='module')
def tokenizer(folder):
  return load_tokenizer(folder)


def shown(tokenizer, ids):
  """Symbols by name, text as it is."""
  names = {tokenizer.control_id(n): n for n in tokenizer.control_symbols()}
  return [names.get(i, tokenizer.decode([i])) for i in np.asarray(ids).tolist()]


def test_a_prompt_is_what_the_template_draws(folder, tokenizer):
  ids = read_jinja_chat(folder, tokenizer).prompt([USER])
  parts = shown(tokenizer, ids)
  assert ''.join(parts) == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\nSay <|im_end|> twice<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  # The one that the user spelled is several tokens.
  assert parts.count('<|im_end|>') == 2


def test_lines_of_blocks_alone_leave_nothing_as_in_transformers(tokenizer):
  template = '{% for m in messages %}\n  {{ m.content }}!\n  {% endfor %}\nx'
  ids = JinjaChat(template, tokenizer, {}).prompt([USER])
  assert tokenizer.decode(ids) == '  Say <|im_end|> twice!\nx'


def test_a_frame_is_what_stands_around_a_message(folder, tokenizer):
  chat = read_jinja_chat(folder, tokenizer)
  before, after = chat.frame()
  assert ''.join(shown(tokenizer, before)).endswith('<|im_start|>user\n')
  assert ''.join(shown(tokenizer, after)) == (
    '<|im_end|>\n<|im_start|>assistant\n'
  )


@pytest.mark.parametrize('system', ['', 'Be brief.'])
@pytest.mark.parametrize('name', TEMPLATES)
def test_our_templates_go_out_as_they_are_trained_with(name, system, tokenizer):
  template = TEMPLATES[name]
  chat = Chat(tokenizer, template)
  tokens, mask = encode_conversation(
    chat, [(' What is 2 + 2?\n', 'It is 4.'), ('Hello there', 'Fine.')], system
  )
  # Up to where the second answer begins.
  starts = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)
  names = {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'}
  messages = [
    {'role': 'user', 'content': ' What is 2 + 2?\n'},
    {'role': 'assistant', 'content': 'It is 4.'},
    {'role': 'user', 'content': 'Hello there'},
  ]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  jinja = JinjaChat(jinja_source(template), tokenizer, names)
  assert shown(tokenizer, jinja.prompt(messages)) == (
    shown(tokenizer, tokens[: starts[1]])
  )


def test_the_template_is_found_wherever_it_may_be(tmp_path, tokenizer):
  for k, (config, file) in enumerate(
    [
      ({'chat_template': 'x{{ messages[0].content }}'}, ''),
      (
        {
          'chat_template': [
            {'name': 'tools', 'template': 'y'},
            {'name': 'default', 'template': 'x{{ messages[0].content }}'},
          ]
        },
        '',
      ),
      ({'chat_template': 'y'}, 'x{{ messages[0].content }}'),
    ]
  ):
    made = write_folder(tmp_path / str(k), **config)
    if file:
      (made / 'chat_template.jinja').write_text(file)
    chat = read_jinja_chat(made, tokenizer)
    assert tokenizer.decode(chat.prompt([USER])) == 'xSay <|im_end|> twice'
  assert read_jinja_chat(write_folder(tmp_path / 'base'), tokenizer) is None


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{% for %}', 'the chat template is damaged'),
    ("{{ raise_exception('no system') }}", 'refuses these messages: no system'),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'refuses these'),
    ('{{ messages.append(1) }}', 'refuses these messages'),
  ],
)
def test_a_bad_template_is_one_clear_line(template, message, tokenizer):
  with pytest.raises(TokenizerError, match=message):
    JinjaChat(template, tokenizer, {}).prompt([USER])


def test_a_template_that_hides_the_message_has_no_frame(tokenizer):
  with pytest.raises(TokenizerError, match='exactly once'):
    JinjaChat('nothing', tokenizer, {}).frame()


def test_both_kinds_of_tokenizer_tell_their_symbols(tmp_path, tokenizer):
  assert set(tokenizer.control_symbols()) >= {'<|im_start|>', '</s>'}
  path = write_sentencepiece(
    tmp_path / 'sp/tokenizer.model',
    control_symbols=['<x>'],
    user_defined_symbols=['<y>'],
  )
  (path.parent / 'added_tokens.json').write_text(json.dumps({'[USER]': 330}))
  found = load_tokenizer(path, control=['<y>']).control_symbols()
  assert set(found) == {'<s>', '</s>', '<x>', '<y>', '[USER]'}
