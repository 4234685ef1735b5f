"""Templates: the tokens Hugging Face's rendering gives, loss on answers alone.

The expected texts are the templates of the models' own files, as jinja.
"""

import jinja2
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data.chat import (
  Chat,
  Conversation,
  cut_conversation,
  encode_conversation,
  encode_conversations,
)
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.data.tokenizer_files import load_tokenizer
from tests import small
from tests.data.small_tokenizers import SPECIAL, byte_level_bpe, write_folder

# tokenizer_config.json, chat_template, of SmolLM2 and Qwen2.5 (without the
# system's text that they make up), and of Meta-Llama-3-8B-Instruct.
CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' +"
  " message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
  '{% for message in messages %}{% set content ='
  " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
  " + message['content'] | trim + '<|eot_id|>' %}"
  '{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}'
  '{{ content }}{% endfor %}{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Skywork-13B-Chat: special_encode of its README, and ms-swift for the rest.
SKYWORK = (
  "{% if messages[0]['role'] == 'system' %}{{ '<s>' + messages[0]['content'] |"
  " trim }}{% endif %}{{ '</s>' }}{% for message in messages %}"
  "{% if message['role'] == 'user' %}"
  "{{ '<s>[USER]' + message['content'] | trim + '[SEP][BOT]' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ message['content'] | trim + '[SEP]</s>' }}{% endif %}{% endfor %}"
)
RENDERED = {'chatml': CHATML, 'llama3': LLAMA3, 'skywork': SKYWORK}
BOS = {'chatml': '', 'llama3': '<|begin_of_text|>', 'skywork': '<s>'}

TEXT = st.text() | st.sampled_from(
  ['Hello', ' two  words\n', '\n\nlines\n', '4.', 'user\n', '  def f():\n']
)
# Hypothesis draws constants of our own modules too, so it knows the symbols.
HARMLESS = TEXT.filter(lambda text: not any(map(text.count, SPECIAL)))
FORGING = TEXT | st.lists(st.sampled_from([*SPECIAL, 'a', ' '])).map(''.join)
TURNS = st.lists(st.tuples(FORGING, FORGING), min_size=1, max_size=4)


@pytest.fixture(scope='module', params=list(TEMPLATES))
def name(request):
  return request.param


@pytest.fixture(scope='module')
def chat(name, tmp_path_factory):
  llama = name == 'llama3'
  folder = write_folder(
    tmp_path_factory.mktemp('tokenizer'),
    bos_token='<|begin_of_text|>' if llama else '<s>',
    eos_token='<|end_of_text|>' if llama else '</s>',
  )
  template = TEMPLATES[name]
  return Chat(load_tokenizer(folder, control=template.control), template)


def runs(flags):
  """(start, stop) of the runs of ones."""
  edges = np.flatnonzero(np.diff([0, *flags, 0]))
  return edges.reshape(-1, 2).tolist()


@settings(deadline=None)
@given(TURNS, FORGING)
def test_loss_covers_the_answers_and_their_ends_alone(name, chat, turns, said):
  template, tokenizer = TEMPLATES[name], chat.tokenizer
  control = {tokenizer.control_id(s) for s in SPECIAL}
  tokens, mask = encode_conversation(chat, turns, said)
  answers = runs(mask)
  assert len(answers) == len(turns)
  # The end that the model learns, and how many control tokens there are.
  ends = {
    'plain': ['<|end|>'],
    'chatml': ['<|im_end|>'],
    'llama3': ['<|eot_id|>'],
    'skywork': ['[SEP]', '</s>'],
  }[name]
  ends = [tokenizer.control_id(end) for end in ends]
  for (start, stop), (_, answer) in zip(answers, turns, strict=True):
    text = answer.strip() if template.strip else answer
    body = tokens[start : stop - len(ends)]
    assert tokens[start:stop].tolist()[len(body) :] == ends
    assert control.isdisjoint(body.tolist())
    assert tokenizer.decode(body) == template.text_prefix + text
  # Outside of them is every other text, which forges nothing either.
  prompts = [tokenizer.decode(tokens[a:b]) for a, b in runs(~mask)]
  for prompt, (user, _) in zip(prompts, turns, strict=False):
    assert (user.strip() if template.strip else user) in prompt
  assert said.strip() in prompts[0]
  spelled = encode_conversation(chat, [('a', 'a')] * len(turns), said and 'a')
  assert (
    np.isin(tokens, list(control)).sum()
    == np.isin(spelled[0], list(control)).sum()
  )


def messages_of(turns, said):
  messages = [{'role': 'system', 'content': said}] if said else []
  for user, assistant in turns:
    messages.append({'role': 'user', 'content': user})
    messages.append({'role': 'assistant', 'content': assistant})
  return messages


def rendered_ids(name, messages, *, prompt=False):
  text = jinja2.Template(RENDERED[name], keep_trailing_newline=True).render(
    messages=messages, bos_token=BOS[name], add_generation_prompt=prompt
  )
  return byte_level_bpe().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize('name', list(RENDERED), indirect=True)
@settings(deadline=None, max_examples=30)
@given(
  st.lists(
    # An answer that begins with white space is encoded apart from what stands
    # before it: the test below is of the prompt.
    st.tuples(HARMLESS, HARMLESS.filter(lambda text: text == text.lstrip())),
    min_size=1,
    max_size=3,
  ),
  HARMLESS,
)
def test_tokens_are_those_of_the_rendered_template(name, chat, turns, said):
  tokens, _ = encode_conversation(chat, turns, said)
  expected = rendered_ids(name, messages_of(turns, said))
  assert tokens.tolist() == expected


@pytest.mark.parametrize('name', ['chatml', 'llama3'], indirect=True)
def test_the_model_goes_on_from_the_rendered_prompt(name, chat):
  turns = [('Hi', '\n 4'), ('And?', '  5')]
  tokens, mask = encode_conversation(chat, turns)
  messages = messages_of(turns, '')
  for k, (start, _) in enumerate(runs(mask)):
    prompt = rendered_ids(name, messages[: 2 * k + 1], prompt=True)
    if k == 0:
      assert tokens[:start].tolist() == prompt
    assert tokens[:start].tolist()[-3:] == prompt[-3:]


def test_opening_text_asking_and_answer_make_a_conversation(chat):
  tokens, mask = encode_conversation(chat, [('What is 2 + 2?', '4')])
  after = len(chat.opening) + len(chat.encode_text('What is 2 + 2?'))
  start, stop = runs(mask)[0]
  assert tokens[: len(chat.opening)].tolist() == chat.opening
  assert tokens[after:start].tolist() == chat.asking
  assert tokens[start:stop].tolist() == chat.encode_answer('4')


def test_a_batch_is_encoded_as_its_conversations(chat):
  conversations = [
    Conversation([('a', 'b'), ('c <s>', '')], 'Be brief.'),
    Conversation([('Hello', 'there')]),
  ]
  batch = list(encode_conversations(chat, conversations))
  assert len(batch) == 2
  for made, one in zip(batch, conversations, strict=True):
    expected = encode_conversation(chat, one.turns, one.system)
    assert np.array_equal(made, expected)


def test_tokens_that_the_tokenizer_lacks_are_named(name, tmp_path):
  present = TEMPLATES[name].control[0]
  write_folder(tmp_path, byte_level_bpe([present]))
  with pytest.raises(TokenizerError) as raised:
    Chat(load_tokenizer(tmp_path), TEMPLATES[name])
  message = str(raised.value)
  around = {'chatml': [], 'skywork': ['bos', 'eos']}
  absent = [*TEMPLATES[name].control[1:], *around.get(name, ['bos'])]
  assert f'lacks {", ".join(absent)}, which' in message
  assert '\n' not in message


def test_every_template_may_be_configured(name):
  config = small.corpus_config(chat_template=name)
  assert config.chat_template == name
  kinds = CorpusConfig.__dataclass_fields__['chat_template'].type
  assert set(kinds.__args__) == set(TEMPLATES)


def test_control_symbols_have_names_for_people(tmp_path):
  template = TEMPLATES['chatml']
  for eos, others in (('<|im_end|>', []), ('</s>', ['<eos>'])):
    folder = write_folder(tmp_path / eos.strip('</>'), eos_token=eos)
    tokenizer = load_tokenizer(folder, control=template.control)
    symbols = Chat(tokenizer, template).symbols
    # A marker that ends documents too keeps its name; there is no <bos>.
    assert sorted(symbols.values()) == sorted([*template.control, *others])
    for name in template.control:
      assert symbols[tokenizer.control_id(name)] == name


def test_the_fingerprint_changes_with_template_and_tokenizer(tmp_path):
  hf = load_tokenizer(write_folder(tmp_path / 'a', bos_token='<s>'))
  other = load_tokenizer(write_folder(tmp_path / 'b', bos_token='</s>'))
  made = [
    Chat(tokenizer, TEMPLATES[name]).fingerprint
    for tokenizer, name in ((hf, 'plain'), (hf, 'chatml'), (other, 'plain'))
  ]
  assert len(set(made)) == 3


LONG = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9])
MASK = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], bool)


@pytest.mark.parametrize(
  ('max_len', 'kept'),
  [(9, 9), (8, 8), (7, 5), (5, 5), (4, 4), (3, 3), (2, None), (1, None)],
)
def test_a_long_conversation_is_cut_at_the_end_of_a_turn(max_len, kept):
  # user user ANS ANS ANS user ANS ANS after
  cut = cut_conversation(LONG, MASK, max_len)
  if kept is None:
    assert cut is None
  else:
    assert cut[0].tolist() == LONG[:kept].tolist()
    assert cut[1].tolist() == MASK[:kept].tolist()


def test_the_tokenizers_library_reads_the_special_tokens_in_the_references():
  # Else the comparison above would be of texts without any.
  ids = rendered_ids('chatml', messages_of([('a', 'b')], ''))
  raw: tokenizers.Tokenizer = byte_level_bpe()
  assert ids.count(raw.token_to_id('<|im_end|>')) == 2
