"""Adds the README and the source files that pages link to, for MkDocs.

Links in the Markdown files are relative to the repository, so that they work
there; here they become links of the site.
"""

from collections.abc import Iterator
import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File
import pygments
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = pathlib.Path(__file__).parent.parent
# Pages that are not in docs/, by their place in the repository.
PAGES = {
  'README.md': 'index.md',
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
  'docs/tutorial.ipynb': 'tutorial.md',
  'resnet/pretrained/README.md': 'pretrained.md',
}
# [`name`](path, ](path or src="path; other schemes have a colon.
LINK = re.compile(r'(?:\[`([\w.]+)`)?(?:\]\(|src=")([^)"#:\s]+)')


def on_files(files, config):
  """Adds `PAGES`, and a page for each file outside docs/ with a link to it."""
  for path, uri in PAGES.items():
    text = (ROOT / path).read_text()
    if path.endswith('.ipynb'):
      text = notebook_page(text)
    files.append(File.generated(config, uri, content=text))
  linked = {
    target
    for file in files.documentation_pages()
    for _, target in linked_files(file.src_uri, file.content_string)
  }
  for path in sorted(linked):
    if files.get_file_from_path(uri := site_uri(path)) is None:
      files.append(File.generated(config, uri, content=source_page(path)))


def on_page_markdown(markdown, page, **_):
  """Points links at the pages of the site."""
  uri = page.file.src_uri
  if uri == 'index.md':
    page.meta['hide'] = ['navigation']
  if uri.startswith(('source/', 'results/')):
    page.meta['search'] = {'exclude': True}
  if uri.startswith('source/'):
    page.meta['hide'] = ['navigation', 'toc']
    return markdown
  for match, target in reversed([*linked_files(uri, markdown)]):
    link = posixpath.relpath(site_uri(target), posixpath.dirname(uri))
    link += line_anchor(target, match[1])
    markdown = markdown[: match.start(2)] + link + markdown[match.end(2) :]
  return markdown


def on_page_content(html, **_):
  """Marks the options of commands, which extra.css keeps on one line."""
  return re.sub(
    '<code>[^<]+</code>',
    lambda code: re.sub(r'--[^\s<]+', r'<span>\g<0></span>', code[0]),
    html,
  )


def notebook_page(text: str) -> str:
  """Returns a notebook with its outputs as Markdown."""
  parts = []
  for cell in json.loads(text)['cells']:
    source = ''.join(cell['source'])
    is_code = cell['cell_type'] == 'code'
    parts.append(f'```python\n{source}\n```' if is_code else source)
    for output in cell.get('outputs', []):
      if png := output.get('data', {}).get('image/png'):
        parts.append(f'![figure](data:image/png;base64,{png.strip()})')
      else:
        parts.append(f'```text\n{"".join(output["text"])}```')
  return '\n\n'.join(parts)


def linked_files(uri: str, text: str) -> Iterator[tuple[re.Match, str]]:
  """Yields each link to a file, with the file's place in the repository."""
  places = {uri: path for path, uri in PAGES.items()}
  folder = posixpath.dirname(places.get(uri, f'docs/{uri}'))
  for match in LINK.finditer(text):
    target = posixpath.normpath(posixpath.join(folder, match[2]))
    if (ROOT / target).is_dir():
      target += '/README.md'
    if (ROOT / target).is_file():
      yield match, target


def site_uri(path: str) -> str:
  """Returns the place on the site of a file of the repository."""
  in_docs = path.startswith('docs/')
  default = path.removeprefix('docs/') if in_docs else f'source/{path}.md'
  return PAGES.get(path, default)


def line_anchor(path: str, name: str | None) -> str:
  """Returns '#L-N' for the definition of `Class.member` or `name`, or ''."""
  if name is None or not path.endswith('.py'):
    return ''
  text, end = (ROOT / path).read_text(), 0
  for depth, part in enumerate(name.split('.')):
    start = f'^{"  " * depth}(?:(?:class|def) )?'
    match = re.compile(rf'{start}{part}\b *[(:=]', re.M).search(text, end)
    if match is None:
      return ''
    end = match.end()
  return f'#L-{text.count(chr(10), 0, end) + 1}'


def source_page(path: str) -> str:
  """Returns a source file as a page with a number and an anchor per line."""
  text = (ROOT / path).read_text()
  try:
    lexer = get_lexer_for_filename(path)
  except ClassNotFound:
    lexer = TextLexer()
  formatter = HtmlFormatter(
    linenos='inline', lineanchors='L', anchorlinenos=True, wrapcode=True
  )
  return f'# `{path}`\n\n{pygments.highlight(text, lexer, formatter)}'
