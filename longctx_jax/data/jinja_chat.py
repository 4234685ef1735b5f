"""Chat templates of pretrained models: Jinja, as Hugging Face's files have it.

A model's own template says what stands around a message, its default system
message and all. It is another's code: it runs in Jinja's sandbox, and what a
user writes never becomes a control symbol, whatever it spells.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longctx_jax.data.chat_templates import ChatTemplate
from longctx_jax.data.tokenizer import Tokenizer, TokenizerError

# Stands for message k while the template runs; no text of a template has it.
# The white space around it is gone where a template strips messages.
_MARK = '\u2003\ue0f0{}\ue0f1\u2003'
_MARKS = re.compile('(\u2003?)\ue0f0(\\d+)\ue0f1(\u2003?)')


class JinjaChat:
  """A model's chat template, and its tokenizer.

  Raises:
    TokenizerError: not a template of Jinja's.
  """

  def __init__(
    self, template: str, tokenizer: Tokenizer, names: Mapping[str, str]
  ):
    """`names` has the texts of `bos_token` and the like."""
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
      'raise_exception': _raise_exception,
      'strftime_now': lambda _: '',  # a prompt is the same on every day
    }
    try:
      self._template = environment.from_string(template)
    except jinja2.TemplateError as error:
      raise TokenizerError(f'the chat template is damaged: {error}') from error
    self._tokenizer, self._names = tokenizer, names
    symbols = sorted(tokenizer.control_symbols(), key=len, reverse=True)
    self._symbols = re.compile(f'({"|".join(map(re.escape, symbols))})')

  def prompt(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Ids of {'role', 'content'} messages, up to where the answer begins."""
    rendered = self._render(
      [
        {**message, 'content': _MARK.format(k)}
        for k, message in enumerate(messages)
      ]
    )
    contents = [message['content'] for message in messages]
    return self._encode(rendered, contents)

  def frame(self) -> tuple[np.ndarray, np.ndarray]:
    """Ids before and behind a user's one message."""
    rendered = self._render([{'role': 'user', 'content': _MARK.format(0)}])
    parts = _MARKS.split(rendered)
    if len(parts) != 5:
      raise TokenizerError(
        "the chat template does not show a user's message exactly once"
      )
    return self._encode(parts[0]), self._encode(parts[-1])

  def _encode(self, rendered, contents=()) -> np.ndarray:
    """Ids of what a template gave, with messages where their marks stand."""
    ids: list[int] = []
    for k, part in enumerate(self._symbols.split(rendered)):
      if k % 2:
        ids.append(self._tokenizer.control_id(part))
      elif part:
        text = _MARKS.sub(lambda mark: _message(mark, contents), part)
        ids += self._tokenizer.encode(text).tolist()
    return np.array(ids, np.int32)

  def _render(self, messages) -> str:
    try:
      return self._template.render(
        messages=messages, add_generation_prompt=True, **self._names
      )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
      raise TokenizerError(
        f'the chat template refuses these messages: {error}'
      ) from error


def read_jinja_chat(folder: Path, tokenizer: Tokenizer) -> JinjaChat | None:
  """The template of a model's folder; None if it has none: a base model."""
  config = folder / 'tokenizer_config.json'
  fields: dict[str, Any] = {}
  if config.is_file():
    fields = json.loads(config.read_text('utf-8'))
  template = fields.get('chat_template')
  if (folder / 'chat_template.jinja').is_file():
    template = (folder / 'chat_template.jinja').read_text('utf-8')
  if isinstance(template, list):  # several, by name
    named = {entry['name']: entry['template'] for entry in template}
    template = named.get('default')
  if not template:
    return None
  names = {
    name: value if isinstance(value, str) else value['content']
    for name in ('bos_token', 'eos_token')
    if (value := fields.get(name))
  }
  return JinjaChat(template, tokenizer, names)


def jinja_source(template: ChatTemplate) -> str:
  """One of our templates in Jinja, for models that go out."""
  content = 'm.content | trim' if template.strip else 'm.content'
  if template.text_prefix:
    content = f'{json.dumps(template.text_prefix)} + ({content})'

  def shown(marked):
    values = {'{text}': f'({content})', '{bos}': 'bos_token'}
    values['{eos}'] = 'eos_token'
    parts = filter(None, re.split(r'(\{(?:text|bos|eos)\})', marked))
    terms = [values.get(part) or json.dumps(part) for part in parts]
    return f'{{{{ {" + ".join(terms)} }}}}' if terms else ''

  answered = template.before_answer + template.answer + template.after_answer
  return (
    "{% set m = messages[0] %}{% if m.role == 'system' %}"
    f'{shown(template.opening_with_system)}{{% set messages = messages[1:] %}}'
    f'{{% else %}}{shown(template.opening)}{{% endif %}}'
    "{% for m in messages %}{% if m.role == 'user' %}"
    f'{shown(template.user)}{{% else %}}{shown(answered)}{{% endif %}}'
    '{% endfor %}{% if add_generation_prompt %}'
    f'{shown(template.before_answer)}{{% endif %}}'
  )


def _message(mark, contents) -> str:
  text = contents[int(mark[2])]
  text = text if mark[1] else text.lstrip()
  return text if mark[3] else text.rstrip()


def _raise_exception(message):
  raise jinja2.TemplateError(message)
