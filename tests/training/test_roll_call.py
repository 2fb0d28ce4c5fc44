"""The roll call, with threads for processes: who is missing, wrong calls."""

import concurrent.futures
import socket

import pytest

from resnet.errors import InputError, RunError
from resnet.training import roll_call


@pytest.fixture
def port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def hold(port, ids, *, num_processes=3, seconds=5.0, host='127.0.0.1'):
  """Returns the result or the error of each process."""

  def one(process_id):
    try:
      return roll_call.hold(
        f'{host}:{port}',
        num_processes=num_processes,
        process_id=process_id,
        seconds=seconds,
      )
    except (InputError, RunError) as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
    return list(pool.map(one, ids))


def say(port, text):
  """Says something to process 0, as soon as it listens, and goes."""
  while True:
    try:
      connection = socket.create_connection(('127.0.0.1', port))
      break
    except ConnectionRefusedError:
      continue
  with connection:
    connection.sendall(text.encode())


def _close(connections):
  for connection in connections.values():
    connection.close()


def test_all_come_in_any_order(port):
  results = hold(port, [2, 1, 0])
  assert [sorted(connections) for connections in results] == [[0], [0], [1, 2]]
  _close(results[2])  # What a death looks like to the others.
  for connections in results[:2]:
    with connections[0] as connection:
      assert connection.recv(1) == b''


def test_who_is_missing_is_named_in_all_that_have_come(port):
  for error in hold(port, [0, 2], num_processes=4, seconds=1.0):
    assert isinstance(error, RunError)
    assert str(error).startswith('Process 1, 3 of 4 has not come within 1 s')


def test_who_has_come_and_gone_is_missing(port):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    called = pool.submit(hold, port, [0], seconds=1.0)
    say(port, '{"process_id": 1, "num_processes": 3}\n')
    (error,) = called.result()
  assert str(error).startswith('Process 1, 2 of 3 has not come within 1 s')


def test_process_0_that_cannot_be_reached(port):
  (error,) = hold(port, [1], seconds=0.5)
  assert isinstance(error, RunError)
  assert f'cannot be reached at 127.0.0.1:{port} for 0 s' in str(error)
  assert 'refused' in str(error)


def test_a_number_that_was_given_twice(port):
  errors = hold(port, [0, 1, 1])
  assert all(isinstance(error, (InputError, RunError)) for error in errors)
  assert all('--process_id=1 was given to two' in str(e) for e in errors)


def test_processes_that_count_differently(port):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(hold, port, [0], num_processes=2)
    second = pool.submit(hold, port, [1], num_processes=3)
    for errors in (first.result(), second.result()):
      assert '--num_processes is 2 in process 0, 3 in process 1' in str(
        errors[0]
      )


def test_a_port_in_use():
  with socket.create_server(('', 0)) as server:
    taken = server.getsockname()[1]
    (error,) = hold(taken, [0])
  assert isinstance(error, InputError)
  assert f'Port {taken} of --coordinator_address' in str(error)


@pytest.mark.parametrize('address', ['host', 'host:', ':1', 'a:b', 'a:70000'])
def test_an_address_that_is_none(address):
  with pytest.raises(InputError, match='no HOST:PORT'):
    roll_call.hold(address, num_processes=2, process_id=1, seconds=1.0)


def test_a_host_that_is_not_known(port):
  (error,) = hold(port, [1], host='no-such-host.invalid')
  assert isinstance(error, InputError)
  assert 'no-such-host.invalid is no known host' in str(error)


def test_strangers_at_the_port_are_ignored(port):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    called = pool.submit(hold, port, [0], num_processes=2)
    for text in ('GET / HTTP/1.1\r\n\r\n', '{"process_id": 1}\n', '[]\n'):
      say(port, text)
    results = hold(port, [1], num_processes=2) + called.result()
  for connections in results:
    assert len(connections) == 1
    _close(connections)


@pytest.mark.parametrize('others_come_before', [False, True])
def test_a_process_that_has_died_may_come_again(port, others_come_before):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    called = pool.submit(hold, port, [0])
    say(port, '{"process_id": 1, "num_processes": 3}\n')
    other = pool.submit(hold, port, [2])
    if others_come_before:
      with pytest.raises(TimeoutError):
        other.result(timeout=0.5)
    results = hold(port, [1]) + other.result() + called.result()
  for connections in results:
    assert isinstance(connections, dict), connections
    _close(connections)


@pytest.mark.parametrize('index', [0, 3, -1, '"1"', '[1]'])
def test_a_number_that_is_none_is_refused(port, index):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    called = pool.submit(hold, port, [0])
    say(port, f'{{"process_id": {index}, "num_processes": 3}}\n')
    (error,) = called.result()
  assert isinstance(error, InputError)
  assert 'is none of 3 processes' in str(error)
