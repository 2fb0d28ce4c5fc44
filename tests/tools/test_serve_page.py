"""The page in a real browser: Debian's chromium, driven by Playwright."""

import shutil

import pytest

from tests.tools.test_serve import Service, encode
from tests.tools.test_serve import source as source  # A fixture.

sync_api = pytest.importorskip(
  'playwright.sync_api', reason='an optional package'
)
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason='there is no chromium'),
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


@pytest.fixture(params=[(1000, 800), (360, 640)], ids=['desk', 'phone'])
def page(request, browser, service):
  width, height = request.param
  page = browser.new_page(viewport={'width': width, 'height': height})
  page.requested = []
  page.complaints = []
  page.on('request', lambda r: page.requested.append(r.url))
  page.on('pageerror', lambda error: page.complaints.append(str(error)))
  page.on(
    'console',
    lambda m: page.complaints.append(m.text) if m.type == 'error' else None,
  )
  # From now on Playwright answers for the dialogue: told only when it is about
  # to open, it may come too late.
  page.on('filechooser', lambda _: None)
  page.goto(service.url)
  yield page
  # Nothing comes from elsewhere.
  assert all(
    url.startswith((service.url, 'blob:', 'data:')) for url in page.requested
  )
  page.close()


def files(*named):
  return [
    {'name': name, 'mimeType': 'image/png', 'buffer': data}
    for name, data in named
  ]


def fits(page):
  return page.evaluate(
    'document.documentElement.scrollWidth <= window.innerWidth'
  )


def test_choosing_files_shows_bars_and_maps(page):
  page.set_input_files('#files', files(('a.png', encode(0)), ('b', encode(1))))
  sync_api.expect(page.locator('article')).to_have_count(2)
  sync_api.expect(page.locator('meter')).to_have_count(10)
  first = page.locator('article').last
  assert first.locator('h2').inner_text() == 'a.png'
  values = [
    float(bar.get_attribute('value') or bar.evaluate('bar => bar.value'))
    for bar in first.locator('meter').all()
  ]
  assert values == sorted(values, reverse=True) and 0 < sum(values) <= 1
  images = page.locator('article img')
  sync_api.expect(images).to_have_count(4)
  # They are really shown: the map has its 224 pixels.
  widths = [image.evaluate('i => i.naturalWidth') for image in images.all()]
  assert sorted(widths) == [40, 40, 224, 224]
  assert fits(page)
  assert page.complaints == []


def test_a_broken_file_shows_a_message_and_the_next_one_works(page):
  page.set_input_files('#files', files(('bad.png', b'nonsense')))
  alert = page.get_by_role('alert')
  sync_api.expect(alert).to_contain_text('neither a PNG nor a JPEG')
  page.set_input_files('#files', files(('good.png', encode(3))))
  sync_api.expect(page.locator('meter')).to_have_count(5)
  assert fits(page)


def test_dropping_a_file(page):
  page.evaluate(
    """bytes => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], 'dropped.png'));
      document.body.dispatchEvent(new DragEvent('drop', {
        dataTransfer: data, bubbles: true, cancelable: true}));
    }""",
    list(encode(4)),
  )
  sync_api.expect(page.locator('h2')).to_have_text('dropped.png')
  sync_api.expect(page.locator('meter')).to_have_count(5)


def test_the_keyboard_reaches_the_files(page):
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.id') == 'files'
  with page.expect_file_chooser() as chooser:
    page.keyboard.press('Enter')
  chooser.value.set_files(files(('typed.png', encode(5))))
  sync_api.expect(page.locator('meter')).to_have_count(5)
