"""The server, as clients meet it: in a process of its own."""

from concurrent.futures import ThreadPoolExecutor
import http.client
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from resnet.models import weights
from resnet.tools import command, serve
from tests.networks import make_variables
from tests.programs import environment

pytest.importorskip('starlette', reason='an optional extra')
pytest.importorskip('uvicorn', reason='an optional extra')
ROOT = pathlib.Path(__file__).parents[2]


def encode(seed=0, size=40):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
  return cv2.imencode('.png', pixels)[1].tobytes()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  _, variables = make_variables('cifar_resnet8', size=32, num_classes=6)
  path = str(tmp_path_factory.mktemp('serve') / 'net.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.5, 0.5, 0.5),
      std=(0.25, 0.25, 0.25),
      image_size=32,
      crop_share=1.0,
      interpolation='bilinear',
    ),
    class_names=('ant', 'bee', 'cat', 'dog', 'eel', 'fox'),
  )
  weights.save_weights(variables, path, metadata=metadata)
  return path


class Service:
  """A server in a process of its own, in a folder of its own."""

  def __init__(self, source, folder, *args):
    self.folder = folder
    self.process = subprocess.Popen(
      [
        # A shell that puts a program behind lets it ignore Ctrl-C.
        *('env', '--default-signal=INT', sys.executable),
        *('-m', 'resnet.tools.serve', f'--weights={source}'),
        *('--port=0', '--max-batch=4', *args),
      ],
      cwd=folder,
      env=environment(
        PYTHONPATH=str(ROOT), HOME=str(folder), TMPDIR=str(folder)
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    assert self.process.stdout
    self.url = self.process.stdout.readline().split()[-1]
    self.port = int(self.url.rpartition(':')[2])

  def ask(self, method, path, body=b'', headers=None):
    """Returns status, parsed JSON or text."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
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
    lines = dict(
      line.rsplit(' ', 1) for line in text.splitlines() if line[0] != '#'
    )
    return float(lines[name])

  def predict(self, body, kind='image/png', query=''):
    return self.ask('POST', f'/predict{query}', body, {'Content-Type': kind})

  def stop(self, number=signal.SIGTERM):
    """Returns the exit code, and what was said on stderr."""
    self.process.send_signal(number)
    _, err = self.process.communicate(timeout=60)
    return self.process.returncode, err


@pytest.fixture(scope='module')
def service(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp('service')
  service = Service(source, folder, '--request-seconds=2')
  yield service
  code, err = service.stop(signal.SIGINT)
  assert code == 130 and 'Traceback' not in err


def form(files):
  """Returns body and type of a multipart form."""
  parts = b''.join(
    b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="'
    + name.encode()
    + b'"\r\nContent-Type: image/png\r\n\r\n'
    + data
    + b'\r\n'
    for name, data in files
  )
  return parts + b'--xyz--\r\n', 'multipart/form-data; boundary=xyz'


def test_one_image_gives_five_classes_and_a_map(service):
  status, answer = service.predict(encode(), query='?map=1')
  assert status == 200
  (image,) = answer['images']
  probabilities = [c['probability'] for c in image['classes']]
  assert len(probabilities) == 5
  assert probabilities == sorted(probabilities, reverse=True)
  assert {c['name'] for c in image['classes']} < {
    *('ant', 'bee', 'cat', 'dog', 'eel', 'fox')
  }
  assert image['map'].startswith('data:image/png;base64,')


def test_several_images_are_answered_as_each_alone(service):
  files = [(f'{i}.png', encode(i)) for i in range(6)]
  status, answer = service.predict(*form(files))
  assert status == 200
  assert [image['file'] for image in answer['images']] == [n for n, _ in files]
  for image, (_, data) in zip(answer['images'], files, strict=True):
    _, alone = service.predict(data)
    (other,) = alone['images']
    for a, b in zip(image['classes'], other['classes'], strict=True):
      assert a['name'] == b['name']
      assert a['probability'] == pytest.approx(b['probability'], abs=1e-5)


def test_many_clients_get_their_own_answers(service):
  expected = [service.predict(encode(i))[1] for i in range(8)]
  with ThreadPoolExecutor(16) as pool:
    answers = list(
      pool.map(lambda i: service.predict(encode(i % 8)), range(80))
    )
  for i, (status, answer) in enumerate(answers):
    assert status == 200
    ours, theirs = (
      a['images'][0]['classes'][0] for a in (answer, expected[i % 8])
    )
    assert ours['index'] == theirs['index']
    assert ours['probability'] == pytest.approx(theirs['probability'], abs=1e-5)
  assert service.metric('resnet_batch_images_sum') >= 88
  assert service.metric('resnet_waiting_images') == 0
  assert service.metric('resnet_requests_total{status="200"}') >= 88


def test_health_and_page(service):
  status, answer = service.ask('GET', '/healthz')
  assert (status, answer['status']) == (200, 'ok')
  status, page = service.ask('GET', '/')
  assert status == 200 and '<title>' in page
  for name in ('index.html', 'page.css', 'page.js'):
    text = (ROOT / 'resnet/serving/page' / name).read_text()
    assert '//' not in text.replace('  // ', ''), 'loads nothing from elsewhere'


def huge_png():
  """A header that claims 100,000 x 100,000 pixels."""
  data = bytearray(encode())
  data[16:24] = (100_000).to_bytes(4) * 2
  return bytes(data)


@pytest.mark.parametrize(
  ('kind', 'body', 'status', 'message'),
  [
    ('image/png', b'', 400, 'there are no bytes'),
    ('image/png', b'hello', 400, 'neither a PNG nor a JPEG'),
    ('image/png', encode()[:100], 400, 'too early'),
    ('image/png', huge_png(), 413, '100000 x 100000'),
    ('image/png', b'x' * 10_000_001, 413, 'at most 10,000,000 bytes'),
    ('text/html', encode(), 415, "'text/html'"),
    ('', encode(), 415, 'expected image/png'),
    ('multipart/form-data', encode(), 400, 'form'),
    (*reversed(form([])), 400, 'holds no file'),
    (*reversed(form([('', b'')] * 300)), 413, 'at most 256 images'),
    (*reversed(form([('a.png', encode()), ('b.png', b'?')])), 400, 'b.png'),
  ],
)
def test_bad_input_has_its_status_and_a_line(
  service, kind, body, status, message
):
  got, answer = service.predict(body, kind)
  assert got == status
  assert list(answer) == ['error'] and message in answer['error']
  assert '\n' not in answer['error']
  assert service.predict(encode())[0] == 200  # It lives.


@pytest.mark.parametrize(
  ('method', 'path', 'status'),
  [('GET', '/predict', 405), ('POST', '/healthz', 405), ('GET', '/x', 404)],
)
def test_wrong_methods_and_paths(service, method, path, status):
  got, answer = service.ask(method, path)
  assert got == status and list(answer) == ['error']


_POST = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n'


@pytest.mark.parametrize(
  ('start', 'drop', 'status', 'message'),
  [
    (b'', b'', None, None),
    (_POST, b'X', 408, 'The headers took more than 2 s'),
    (_POST + b'Content-Length: 999\r\n\r\n', b'X', 408, 'The body took more'),
    # Answered at once; nobody waits for the rest.
    (
      b'POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n',
      b'X',
      404,
      '',
    ),
    # The second request of a connection.
    (b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET', b'X', 200, 'ok'),
  ],
  ids=['silence', 'headers', 'body', 'after the answer', 'second request'],
)
def test_a_slow_client_is_cut_off(service, start, drop, status, message):
  """It sends a byte now and then."""
  received = b''
  begin = time.monotonic()
  with socket.create_connection(('127.0.0.1', service.port), 30) as client:
    client.sendall(start)
    client.settimeout(0.3)
    while time.monotonic() - begin < 30:
      try:
        data = client.recv(10_000)
      except TimeoutError:
        client.sendall(drop)
        continue
      except ConnectionError:
        break
      if not data:
        break
      received += data
  # Nobody else waits for it.
  assert service.predict(encode())[0] == 200
  assert 1.9 < time.monotonic() - begin < 25
  answers = received.decode().split('HTTP/1.1 ')[1:]
  if status is None:
    assert not answers
    return
  assert int(answers[0].split()[0]) == status
  answer = json.loads(answers[0].rpartition('\r\n\r\n')[2])
  assert message in str(answer) and len(answers) <= 2


def test_what_is_no_http_is_told_in_json(service):
  with socket.create_connection(('127.0.0.1', service.port), 30) as client:
    client.sendall(b'how are you?\r\n\r\n')
    head, _, body = client.makefile('rb').read().partition(b'\r\n\r\n')
  assert head.startswith(b'HTTP/1.1 400')
  assert list(json.loads(body)) == ['error']


def test_a_body_of_unknown_length_is_cut_at_10_mb(service):
  sent = 0
  with socket.create_connection(('127.0.0.1', service.port), 30) as client:
    client.sendall(_POST + b'Transfer-Encoding: chunked\r\n\r\n')
    chunk = b'f4240\r\n' + b'x' * 1_000_000 + b'\r\n'
    for _ in range(11):
      client.sendall(chunk)
      sent += 1_000_000
    head = client.recv(1000)
  assert head.startswith(b'HTTP/1.1 413') and sent > 10_000_000


def test_nothing_is_written_and_only_this_machine_is_served(service):
  # Parts of a form that large go to the disk by default.
  large = encode(size=1500)
  assert len(large) > 2**21
  status, answer = service.predict(*form([('a.png', large), ('b', b'?')]))
  assert status == 400 and 'b is no image' in answer['error']
  assert service.predict(*form([('a.png', large)]))[0] == 200
  assert os.listdir(service.folder) == []
  with pytest.raises(OSError):
    socket.create_connection(('127.0.0.2', service.port), 5)


def test_overload_is_refused_at_once_and_the_accepted_are_answered(
  source, tmp_path
):
  service = Service(
    source, tmp_path, '--max-waiting=4', '--wait-milliseconds=1000'
  )
  with (
    ThreadPoolExecutor(3) as pool,
    socket.create_connection(('127.0.0.1', service.port), 30) as slow,
  ):
    # A request counts from its headers on, not only when it is complete.
    slow.sendall(_POST + b'Content-Length: 999\r\n\r\n')
    while service.metric('resnet_waiting_images') < 1:
      time.sleep(0.01)
    # Three wait for a fourth, for a second.
    waiting = [pool.submit(service.predict, encode(i)) for i in range(3)]
    while service.metric('resnet_waiting_images') < 4:
      time.sleep(0.01)
    start = time.monotonic()
    status, answer = service.predict(encode())
    assert time.monotonic() - start < 0.5
    assert status == 503 and '4 images wait already' in answer['error']
    slow.close()
    # The end comes after the answers.
    assert service.stop() == (-signal.SIGTERM, '')
    assert [future.result()[0] for future in waiting] == [200] * 3
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--port=99999'], '--port'),
    (['--max-batch=5'], '--max-batch=5 is none of 1, 2'),
    (['--max-waiting=0'], '--max-waiting=0 must be positive'),
    (['--wait-milliseconds=-1'], 'is not in 0 .. 1000'),
    (['--request-seconds=0'], '--request-seconds=0 must be positive'),
    (['--weights=/no/where', '--port=0'], 'no weights at'),
    (['--weights=https://example.com/net', '--port=0'], 'no weights at'),
    (['--weights={pickle}', '--port=0'], 'pickle'),
    (['--model=resnet18', '--port=0'], 'holds weights of cifar_resnet8'),
    (['--host=no.such.host.invalid'], '--host'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  source, tmp_path, monkeypatch, capsys, args, message
):
  path = tmp_path / 'net.pth'
  path.write_bytes(pickle.dumps({'head': [1.0]}))
  args = [arg.format(pickle=path) for arg in args]
  monkeypatch.setattr(sys, 'argv', ['serve', f'--weights={source}', *args])
  with pytest.raises(SystemExit) as error:
    command.run(serve.main, serve.parser())
  assert error.value.code == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and message in err


def test_a_port_that_is_taken_is_named(source, service, monkeypatch, capsys):
  port = f'--port={service.port}'
  monkeypatch.setattr(sys, 'argv', ['serve', f'--weights={source}', port])
  with pytest.raises(SystemExit) as error:
    command.run(serve.main, serve.parser())
  assert error.value.code == 2
  assert f'{port} cannot be had' in capsys.readouterr().err
