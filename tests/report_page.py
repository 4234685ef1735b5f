"""A report as a reader finds it: its tables, and text by where it stands."""

from html.parser import HTMLParser


class Page(HTMLParser):
  """A report taken apart: tables, all ids, and text by id, class or tag."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text()
    self.tables, self.ids, self.text_of = [], [], {}
    self._open = []
    self.feed(self.source)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if 'id' in attrs:
      self.ids.append(attrs['id'])
    if tag == 'table':
      self.tables.append({'caption': '', 'rows': [], 'classes': []})
    elif tag == 'tr':
      self.tables[-1]['rows'].append([])
      self.tables[-1]['classes'].append([])
    elif tag in ('td', 'th'):
      self.tables[-1]['rows'][-1].append('')
      self.tables[-1]['classes'][-1].append(attrs.get('class', '').split())
    if tag not in ('meta', 'br'):
      self._open.append((tag, attrs.get('id') or attrs.get('class') or tag))

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag

  def handle_data(self, data):
    tags = [tag for tag, _ in self._open]
    if 'caption' in tags:
      self.tables[-1]['caption'] += data
    elif 'td' in tags or 'th' in tags:
      self.tables[-1]['rows'][-1][-1] += data
    for _, name in self._open:
      self.text_of[name] = self.text_of.get(name, '') + data

  def table(self, caption, nth=0):
    found = [t for t in self.tables if t['caption'].startswith(caption)]
    return found[nth]
