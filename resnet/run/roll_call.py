"""Whether all processes are there, before JAX connects them.

Process 0 listens where JAX's coordinator will, and every other one says its
number there; so a process that is missing can be named, and no wrong address
is waited for without a word.
"""

import contextlib
import json
import socket
import time

from resnet.errors import InputError, RunError

_OK = 'ok'


def hold(
  address: str, *, num_processes: int, process_id: int, seconds: float
) -> dict[int, socket.socket]:
  """Waits until all processes have come.

  Args:
    address: 'HOST:PORT' of process 0.
    num_processes: how many there are.
    process_id: of this one; 0 calls the roll, the others answer.
    seconds: to wait.

  Returns:
    Connections, by the process at the other end: process 0 has one with each.
    That one ends tells that the process has ended.

  Raises:
    InputError: the address is wrong or in use, a number is taken.
    RunError: some have not come; the message, in all that have, says which.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise InputError(
      f'--coordinator_address={address} is no HOST:PORT, such as 10.0.0.1:1234.'
    )
  deadline = time.monotonic() + seconds
  if process_id == 0:
    return _call(int(port), num_processes, seconds, deadline)
  return {0: _answer((host, int(port)), num_processes, process_id, deadline)}


def _call(
  port: int, num_processes: int, seconds: float, deadline: float
) -> dict[int, socket.socket]:
  try:
    has_ipv6 = socket.has_dualstack_ipv6()
    server = socket.create_server(
      ('', port),
      family=socket.AF_INET6 if has_ipv6 else socket.AF_INET,
      dualstack_ipv6=has_ipv6,
      backlog=num_processes,
    )
  except OSError as error:
    raise InputError(
      f'Port {port} of --coordinator_address cannot be listened at:'
      f' {error.strerror}. Choose another.'
    ) from None
  present: dict[int, socket.socket] = {}
  with server:
    error = None
    while error is None and not _all_are_here(present, num_processes):
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        _strike_out(present)
        missing = sorted(set(range(1, num_processes)) - present.keys())
        error = RunError(
          f'Process {", ".join(map(str, missing))} of {num_processes} has not'
          f' come within {seconds:g} s (--join_seconds).'
        )
        break
      error = _enter(connection, present, num_processes)
    for connection in present.values():
      with contextlib.suppress(OSError):  # JAX will miss it.
        connection.sendall(f'{error or _OK}\n'.encode())
  if error:
    for connection in present.values():
      connection.close()
    raise error
  return present


def _all_are_here(
  present: dict[int, socket.socket], num_processes: int
) -> bool:
  """Whether all have come; strikes out who has gone since."""
  if len(present) == num_processes - 1:
    _strike_out(present)
  return len(present) == num_processes - 1


def _strike_out(present: dict[int, socket.socket]) -> None:
  """Removes who has come and gone."""
  for index in [i for i, x in present.items() if _has_ended(x)]:
    present.pop(index).close()


def _enter(
  connection: socket.socket,
  present: dict[int, socket.socket],
  num_processes: int,
) -> InputError | None:
  """Notes who has come; returns what is wrong with it."""
  connection.settimeout(5.0)
  try:
    said = json.loads(_read_line(connection))
    index, their_number = said['process_id'], said['num_processes']
  except (OSError, ValueError, KeyError, TypeError):
    connection.close()  # Not one of ours.
    return None
  error = None
  if not isinstance(index, int) or not 0 < index < num_processes:
    error = InputError(
      f'--process_id={index} is none of {num_processes} processes.'
    )
  elif their_number != num_processes:
    error = InputError(
      f'--num_processes is {num_processes} in process 0, {their_number} in'
      f' process {index}.'
    )
  elif index in present and not _has_ended(present[index]):
    error = InputError(f'--process_id={index} was given to two processes.')
  if error:
    connection.sendall(f'{error}\n'.encode())
    connection.close()
  else:
    if index in present:
      present[index].close()
    present[index] = connection
  return error


def _has_ended(connection: socket.socket) -> bool:
  """Whether the process at the other end is gone: it may come again."""
  connection.settimeout(0.0)
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    connection.settimeout(5.0)


def _answer(
  address: tuple[str, int],
  num_processes: int,
  process_id: int,
  deadline: float,
) -> socket.socket:
  host, port = address
  said = {'process_id': process_id, 'num_processes': num_processes}
  start, reason = time.monotonic(), ''
  reply, connection = '', None
  while time.monotonic() < deadline:
    try:
      left = deadline - time.monotonic()
      connection = socket.create_connection(address, max(min(left, 5.0), 0.01))
      connection.sendall(f'{json.dumps(said)}\n'.encode())
      # Process 0 began to wait before this one, or later.
      connection.settimeout(2 * (deadline - start) + 5)
      reply = _read_line(connection)
    except socket.gaierror as error:
      raise InputError(
        f'--coordinator_address={host}:{port}: {host} is no known host'
        f' ({error.strerror}).'
      ) from None
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(0.2)
      continue
    finally:
      if connection and reply != _OK:
        connection.close()
    if reply == _OK:
      connection.settimeout(None)
      return connection
    if reply:
      raise RunError(reply)
  raise RunError(
    f'Process 0 cannot be reached at {host}:{port} for'
    f' {deadline - start:.0f} s ({reason}): is it started, is the address its'
    ' own, does a firewall let the port through?'
  )


def _read_line(connection: socket.socket) -> str:
  """Reads up to a line end, or up to the end."""
  data = b''
  while not data.endswith(b'\n') and len(data) < 10_000:
    part = connection.recv(4096)
    if not part:
      break
    data += part
  return data.decode().strip()
