"""The page in a real browser: Debian's chromium, driven by Playwright."""

import shutil

import pytest

from tests.tools.test_serve import Service, encode
from tests.tools.test_serve import source as source  # A fixture.

sync_api = pytest.importorskip(
  'playwright.sync_api', reason='needs playwright (tests/requirements-all.txt)'
)
expect = sync_api.expect
expect.set_options(timeout=60_000)
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason='needs chromium or google-chrome'),
]


@pytest.fixture(scope='module')
def service(source, tmp_path_factory):
  service = Service(source, tmp_path_factory.mktemp('service'))
  yield service
  service.stop()


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox']
    )
    yield browser
    browser.close()


def files(*named):
  return [
    {'name': name, 'mimeType': 'image/png', 'buffer': data}
    for name, data in named
  ]


DROP = """bytes => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], 'dropped.png'));
  document.body.dispatchEvent(new DragEvent('drop', {
    dataTransfer: data, bubbles: true, cancelable: true}));
}"""


@pytest.mark.parametrize(
  ('width', 'height'), [(1000, 800), (360, 640)], ids=['desk', 'phone']
)
def test_files_that_are_chosen_or_dropped_show_bars_and_maps(
  browser, service, width, height
):
  page = browser.new_page(viewport={'width': width, 'height': height})
  page.set_default_timeout(60_000)
  requested, complaints = [], []
  page.on('request', lambda r: requested.append(r.url))
  page.on('pageerror', lambda error: complaints.append(str(error)))
  page.on('console', lambda m: complaints.append(m.text))
  # From now on Playwright answers for the dialogue: told only when it is about
  # to open, it may come too late.
  page.on('filechooser', lambda _: None)
  page.goto(service.url)
  # By the keyboard.
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.id') == 'files'
  with page.expect_file_chooser() as chooser:
    page.keyboard.press('Enter')
  chooser.value.set_files(files(('a.png', encode(0)), ('b', encode(1))))
  expect(page.locator('article')).to_have_count(2)
  expect(page.locator('meter')).to_have_count(10)
  first = page.locator('article').last
  assert first.locator('h2').inner_text() == 'a.png'
  values = [
    bar.evaluate('bar => bar.value') for bar in first.locator('meter').all()
  ]
  assert values == sorted(values, reverse=True) and 0 < sum(values) <= 1
  images = page.locator('article img')
  expect(images).to_have_count(4)
  # They are really shown: the map has its 224 pixels.
  loaded = 'async image => (await image.decode(), image.naturalWidth)'
  widths = [image.evaluate(loaded) for image in images.all()]
  assert sorted(widths) == [40, 40, 224, 224]
  name = first.locator('b').first.inner_text()
  legend = first.locator('.pictures p').inner_text()
  assert f'raised the score of “{name}”' in legend
  network = page.locator('#network').inner_text()
  assert network == 'Network: cifar_resnet8, 6 classes'
  assert complaints == []
  # After a broken file the next one works.
  page.set_input_files('#files', files(('bad.png', b'nonsense')))
  alert = page.get_by_role('alert')
  expect(alert).to_contain_text('neither PNG nor JPEG')
  page.evaluate(DROP, list(encode(4)))
  expect(page.locator('h2').first).to_have_text('dropped.png')
  expect(page.locator('meter')).to_have_count(15)
  fits = 'document.documentElement.scrollWidth <= window.innerWidth'
  assert page.evaluate(fits)
  # Nothing comes from elsewhere.
  ours = (service.url, 'blob:', 'data:')
  assert all(url.startswith(ours) for url in requested)
  page.close()
