"""The server, as clients meet it: in a process of its own."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time

import cv2
import numpy as np
import pytest

from tests.networks import save_random
from tests.programs import (
  ROOT,
  TIMEOUT_SECONDS,
  assert_refused,
  start,
  wait_until,
)

for package in ('starlette', 'uvicorn'):
  pytest.importorskip(
    package, reason=f'needs {package} (requirements-serve.txt)'
  )
NAMES = ('ant', 'bee', 'cat', 'dog', 'eel', 'fox')
POST = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n'


def encode(seed=0, size=40):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
  return cv2.imencode('.png', pixels)[1].tobytes()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  path = tmp_path_factory.mktemp('serve') / 'net.safetensors'
  return save_random(path, size=16, class_names=NAMES)


class Service:
  """A server in a process of its own, in a folder of its own."""

  def __init__(self, source, folder, *args):
    self.folder = folder
    self.process = start(
      *('-m', 'resnet.tools.serve', f'--weights={source}', '--port=0'),
      *('--max-batch=4', *args),
      # A shell that puts a program behind lets it ignore Ctrl-C.
      before=('env', '--default-signal=INT'),
      cwd=folder,
      PYTHONPATH=str(ROOT),
      HOME=str(folder),
      TMPDIR=str(folder),
    )
    self.url = self.process.stdout.readline().split()[-1]
    self.port = int(self.url.rpartition(':')[2])

  def connect(self):
    return socket.create_connection(('127.0.0.1', self.port), TIMEOUT_SECONDS)

  def is_closed(self):
    try:
      self.connect().close()
    except OSError:
      return True
    return False

  def ask(self, method, path, body=b'', headers=None):
    """Returns status, parsed JSON or text."""
    connection = http.client.HTTPConnection(
      '127.0.0.1', self.port, timeout=TIMEOUT_SECONDS
    )
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.headers['content-type'] == 'application/json':
      return response.status, json.loads(text)
    return response.status, text

  def metric(self, name):
    """Returns a number of /metrics."""
    _, text = self.ask('GET', '/metrics')
    (value,) = re.findall(f'^{re.escape(name)} (.*)$', text, re.MULTILINE)
    return float(value)

  def predict(self, body, kind='image/png', query=''):
    return self.ask('POST', f'/predict{query}', body, {'Content-Type': kind})

  def stop(self, number=signal.SIGTERM):
    """Sends a signal; returns the exit code, stdout and stderr."""
    self.process.send_signal(number)
    out, err = self.process.communicate(timeout=TIMEOUT_SECONDS)
    return self.process.returncode, out, err


@pytest.fixture(scope='module')
def service(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp('service')
  service = Service(source, folder, '--request-seconds=3')
  yield service
  code, out, err = service.stop(signal.SIGINT)
  assert code == 130 and 'Traceback' not in err
  assert re.fullmatch(r'Stopped by Ctrl-C. Requests answered: \d+.\n', out)


def form(files):
  """Returns body and type of a multipart form."""
  head = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="%s"'
  part = head + b'\r\nContent-Type: image/png\r\n\r\n%s\r\n'
  parts = b''.join(part % (name.encode(), data) for name, data in files)
  return parts + b'--xyz--\r\n', 'multipart/form-data; boundary=xyz'


def test_one_image_gives_five_classes_and_a_map(service):
  status, answer = service.predict(encode(), query='?map=1')
  assert status == 200
  (image,) = answer['images']
  probabilities = [c['probability'] for c in image['classes']]
  assert len(probabilities) == 5
  assert probabilities == sorted(probabilities, reverse=True)
  assert {c['name'] for c in image['classes']} < set(NAMES)
  assert image['map'].startswith('data:image/png;base64,')


def test_many_clients_and_images_of_one_request_get_their_own_answers(service):
  files = [(f'{i}.png', encode(i)) for i in range(8)]
  status, answer = service.predict(*form(files))
  assert status == 200
  assert [image['file'] for image in answer['images']] == [n for n, _ in files]
  with ThreadPoolExecutor(16) as pool:
    answers = list(
      pool.map(lambda i: service.predict(files[i % 8][1]), range(80))
    )
  for i, (status, alone) in enumerate(answers):
    assert status == 200
    (image,) = alone['images']
    together = answer['images'][i % 8]['classes']
    for a, b in zip(image['classes'], together, strict=True):
      assert a['name'] == b['name']
      assert a['probability'] == pytest.approx(b['probability'], abs=1e-5)
  assert service.metric('resnet_batch_images_sum') >= 88
  assert service.metric('resnet_waiting_images') == 0
  assert service.metric('resnet_requests_total{status="200"}') >= 81


def test_health_and_page(service):
  status, answer = service.ask('GET', '/healthz')
  assert (status, answer['status']) == (200, 'ok')
  for path in ('/', '/page.css', '/page.js'):
    status, text = service.ask('GET', path)
    assert status == 200
    assert '//' not in text.replace('  // ', ''), 'loads nothing from elsewhere'


def test_bad_input_is_answered_with_its_status_and_a_line(service):
  size, huge = encode()[16:24], (100_000).to_bytes(4) * 2
  for body, kind, status, message in (
    (b'hello', 'image/png', 400, 'neither PNG nor JPEG'),
    (encode().replace(size, huge), 'image/png', 413, '100000 x 100000'),
    (b'x' * 10_000_001, 'image/png', 413, '10,000,000 bytes'),
    (encode(), 'text/html', 415, "'text/html'"),
    (encode(), 'multipart/form-data', 400, 'form'),
    (*form([]), 400, 'holds no file'),
    (*form([('', b'')] * 300), 413, 'at most 256 images'),
    (*form([('a.png', encode()), ('b.png', b'?')]), 400, 'b.png'),
  ):
    got, answer = service.predict(body, kind)
    assert (got, list(answer)) == (status, ['error']), message
    assert message in answer['error'] and '\n' not in answer['error']
  got, answer = service.ask('GET', '/predict')
  assert (got, list(answer)) == (405, ['error'])
  assert service.predict(encode())[0] == 200


def read_answer(client):
  """Returns status and JSON of the answer after which the server closes."""
  head, _, body = client.makefile('rb').read().partition(b'\r\n\r\n')
  return int(head.split()[1]), json.loads(body)


def test_a_slow_body_is_refused_and_others_need_not_wait(service):
  begin = time.monotonic()
  with service.connect() as client:
    client.sendall(POST + b'Content-Length: 999\r\n\r\n')
    assert service.predict(encode())[0] == 200
    status, answer = read_answer(client)
  assert status == 408 and 'The body took more than 3 s' in answer['error']
  assert time.monotonic() - begin > 2.9


def test_a_body_of_unknown_length_is_cut_at_10_mb(service):
  chunk = b'f4240\r\n' + b'x' * 1_000_000 + b'\r\n'
  with service.connect() as client:
    client.sendall(POST + b'Transfer-Encoding: chunked\r\n\r\n')
    for _ in range(11):
      client.sendall(chunk)
    assert client.recv(1000).startswith(b'HTTP/1.1 413')


def test_nothing_is_written_and_only_this_machine_is_served(service):
  # Parts of a form that large go to the disk by default.
  large = encode(size=1500)
  assert len(large) > 2**21
  status, answer = service.predict(*form([('a.png', large), ('b', b'?')]))
  assert status == 400 and 'b cannot be decoded' in answer['error']
  assert service.predict(*form([('a.png', large)]))[0] == 200
  assert os.listdir(service.folder) == []
  with pytest.raises(OSError):
    socket.create_connection(('127.0.0.2', service.port), 5)


def test_overload_is_refused_and_a_signal_waits_for_the_accepted(
  source, tmp_path
):
  service = Service(
    source,
    tmp_path,
    *('--max-waiting=4', '--request-seconds=600', '--grace-seconds=600'),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(service.process.kill)
    # A request counts from its headers on, not only when it is complete.
    clients = [stack.enter_context(service.connect()) for _ in range(4)]
    images = [encode(i) for i in range(4)]
    for client, data in zip(clients, images, strict=True):
      client.sendall(POST + b'Content-Length: %d\r\n\r\n' % len(data))
    wait_until(
      lambda: service.metric('resnet_waiting_images') == 4, service.process
    )
    status, answer = service.predict(encode())
    assert status == 503 and '4 images are waiting' in answer['error']
    service.process.send_signal(signal.SIGTERM)
    wait_until(service.is_closed, service.process)
    for client, data in zip(clients, images, strict=True):
      client.sendall(data)
    assert [read_answer(client)[0] for client in clients] == [200] * 4
    _, err = service.process.communicate(timeout=TIMEOUT_SECONDS)
    assert (service.process.returncode, err) == (-signal.SIGTERM, '')
  assert os.listdir(tmp_path) == []


def test_bad_values_are_refused_by_their_flag(tool, source):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    for value in (f'port={taken.getsockname()[1]}', 'max-batch=5'):
      result = tool('serve', f'--weights={source}', f'--{value}')
      assert_refused(result, f'--{value.partition("=")[0]}')
