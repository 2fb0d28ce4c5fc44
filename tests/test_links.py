"""No relative link of a page is dead, as GitHub and the site resolve it."""

import re

import pytest

from tests.test_layering import ROOT

PAGES = [
  *ROOT.glob('*.md'),
  *(ROOT / 'docs').rglob('*.md'),
  *(ROOT / 'resnet').rglob('*.md'),
]


def read(page):
  """Returns the text of a page without its code blocks."""
  return re.sub('^```.*?^```$', '', page.read_text(), flags=re.M | re.S)


def anchors(page):
  """Yields the anchors of headings, by GitHub's rule."""
  for heading in re.findall('^#+ (.+)$', read(page), re.M):
    yield re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_a_file_and_a_heading(page):
  for link in re.findall(r'(?:\]\(|src=")([^)"\s]+)', read(page)):
    path, _, anchor = link.partition('#')
    if ':' not in path:
      target = (page.parent / path) if path else page
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link
