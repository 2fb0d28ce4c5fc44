"""The rendezvous, with threads for processes."""

import concurrent.futures
import socket

import pytest

from resnet.errors import InputError, RunError
from resnet.run import rendezvous
from tests.programs import free_port


@pytest.fixture
def port():
  return free_port()


def meet_all(port, ids, *, num_processes=3, seconds=60.0, host='127.0.0.1'):
  """Returns the result or the error of each process."""

  def one(process_id):
    try:
      return rendezvous.meet(
        f'{host}:{port}', num_processes, process_id, seconds
      )
    except (InputError, RunError) as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
    return list(pool.map(one, ids))


def send(port, text):
  """Sends a text to process 0, as soon as it listens."""
  while True:
    try:
      connection = socket.create_connection(('127.0.0.1', port))
      break
    except ConnectionRefusedError:
      continue
  with connection:
    connection.sendall(text.encode())


def close(peers):
  assert isinstance(peers, dict), peers
  for peer in peers.values():
    peer.close()


def test_processes_connect_in_any_order(port):
  results = meet_all(port, [2, 1, 0])
  assert [sorted(peers) for peers in results] == [[0], [0], [1, 2]]
  assert results[2][1].name.startswith('Process 1 (')
  close(results[2])  # The others see this when process 0 dies.
  for peers in results[:2]:
    with pytest.raises(ConnectionResetError):
      peers[0].receive(60.0)


def test_missing_processes_are_named(port):
  for error in meet_all(port, [0, 2], num_processes=4, seconds=1.0):
    assert isinstance(error, RunError)
    assert str(error).startswith('Process 1, 3 of 4 did not connect within 1 s')


def test_a_bad_address_is_named(port):
  (error,) = meet_all(port, [1], seconds=0.5)
  assert isinstance(error, RunError)
  assert f'could not be reached at 127.0.0.1:{port}' in str(error)
  assert 'refused' in str(error)
  (error,) = meet_all(port, [1], seconds=0.5, host='no-such-host.invalid')
  assert 'could not be reached at no-such-host.invalid' in str(error)
  with socket.create_server(('', 0)) as server:
    taken = server.getsockname()[1]
    (error,) = meet_all(taken, [0])
  assert isinstance(error, InputError)
  assert f'port {taken} of --coordinator_address' in str(error)
  with pytest.raises(InputError, match='is not HOST:PORT'):
    rendezvous.meet('a:70000', 2, 1, 1.0)


def test_numbers_that_do_not_fit_are_refused(port):
  for error in meet_all(port, [0, 1, 1]):
    assert '--process_id=1 was given to two processes' in str(error)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(meet_all, port, [0], num_processes=2)
    second = pool.submit(meet_all, port, [1], num_processes=3)
    for error in first.result() + second.result():
      assert '--num_processes is 2 in process 0, 3 in process 1' in str(error)


def test_other_programs_at_the_port_are_ignored(port):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    called = pool.submit(meet_all, port, [0], num_processes=2)
    for text in ('GET / HTTP/1.1\r\n\r\n', '{"process_id": 1}\n', '[]\n'):
      send(port, text)
    results = meet_all(port, [1], num_processes=2) + called.result()
  for peers in results:
    close(peers)
    assert len(peers) == 1
