"""Connects all processes before JAX does, so that a missing one is named.

Process 0 listens where JAX's coordinator will; the others register there.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import select
import socket
import threading
import time
from typing import Any

from resnet.errors import InputError, RunError


class Peer:
  """The connection with another process: JSON objects, a line each.

  Attributes:
    name: number, host and process id, for messages.
  """

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lines = connection.makefile(encoding='utf-8')
    self._lock = threading.Lock()
    self.name = ''

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends an object; where nobody hears it, `receive` will say so."""
    with self._lock, contextlib.suppress(OSError):
      self._connection.sendall(f'{json.dumps(message)}\n'.encode())

  def receive(self, seconds: float) -> dict[str, Any]:
    """Returns the next object; closes the connection if there is none.

    Raises:
      OSError: TimeoutError after so many seconds, another one at the end.
      ValueError: what came is none: not from one of our processes.
    """
    self._connection.settimeout(seconds)
    try:
      line = self._lines.readline(1_000_000)
      if not line:
        raise ConnectionResetError('the connection was closed')
      if not isinstance(message := json.loads(line), dict):
        raise ValueError('no JSON object')
    except (OSError, ValueError):
      self.close()
      raise
    return message

  def has_ended(self) -> bool:
    """Whether a process that waits for an answer is gone."""
    poll = select.poll()
    poll.register(self._connection, select.POLLIN)
    return bool(poll.poll(0))

  def close(self) -> None:
    self._lines.close()
    self._connection.close()


def name(index: int) -> str:
  """Returns how this process is named in the messages of all."""
  return f'Process {index} ({socket.gethostname()}, pid {os.getpid()})'


def meet(
  address: str, count: int, index: int, seconds: float
) -> dict[int, Peer]:
  """Waits until all `count` processes are there; `index` is this one's.

  Returns:
    The connections by process: process 0 has one with each, the others have
    one with process 0.

  Raises:
    InputError: the address is wrong or in use, or two have one number.
    RunError: some are missing after so many seconds; the message names them.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise InputError(
      f'--coordinator_address={address} is no HOST:PORT, such as 10.0.0.1:1234.'
    )
  if index == 0:
    return _coordinate(int(port), count, seconds)
  me = {'name': name(index), 'process_id': index, 'num_processes': count}
  return {0: _register(host, int(port), me, seconds)}


def _coordinate(port: int, count: int, seconds: float) -> dict[int, Peer]:
  deadline = time.monotonic() + seconds
  came: list[tuple[dict[str, Any], Peer]] = []
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    server = socket.create_server(
      ('', port), family=family, dualstack_ipv6=both, backlog=count
    )
  except OSError as error:
    raise InputError(
      f'Port {port} of --coordinator_address cannot be listened at:'
      f' {error.strerror}. Choose another.'
    ) from None
  try:
    with server:
      while len(present := _present(came, count)) < count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        peer = Peer(server.accept()[0])
        try:
          message = peer.receive(5.0)
          peer.name = message['name']
          came.append((message, peer))
        except (OSError, ValueError, KeyError):  # Not one of our processes.
          peer.close()
  except TimeoutError:
    missing = sorted(set(range(1, count)) - _present(came, count).keys())
    error = RunError(
      f'Process {", ".join(map(str, missing))} of {count} has not come within'
      f' {seconds:g} s (--join_seconds).'
    )
  except InputError as wrong:
    error = wrong
  else:
    for peer in present.values():
      peer.send({'name': name(0)})
    return present
  for _, peer in came:
    peer.send({'error': str(error)})
    peer.close()
  raise error


def _present(
  came: list[tuple[dict[str, Any], Peer]], count: int
) -> dict[int, Peer]:
  """Returns who has come; removes who is gone since.

  Raises:
    InputError: they do not fit together.
  """
  present: dict[int, Peer] = {}
  for message, peer in [*came]:
    index, their_count = message['process_id'], message['num_processes']
    if peer.has_ended():  # It may come again.
      came.remove((message, peer))
      peer.close()
      continue
    if index not in range(1, count):
      raise InputError(f'--process_id={index} is none of {count} processes.')
    if their_count != count:
      raise InputError(
        f'--num_processes is {count} in process 0, {their_count} in process'
        f' {index}.'
      )
    if index in present:
      raise InputError(f'--process_id={index} was given to two processes.')
    present[index] = peer
  return present


def _register(
  host: str, port: int, me: Mapping[str, Any], seconds: float
) -> Peer:
  start, reason = time.monotonic(), ''
  while (left := start + seconds - time.monotonic()) > 0:
    try:
      peer = Peer(socket.create_connection((host, port), min(left, 5.0)))
      peer.send(me)
      # Process 0 began to wait before this one, or later.
      reply = peer.receive(2 * seconds + 5)
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or str(error)
      time.sleep(0.2)
      continue
    if 'error' in reply:
      peer.close()
      raise RunError(reply['error'])
    peer.name = reply['name']
    return peer
  raise RunError(
    f'Process 0 cannot be reached at {host}:{port} for {seconds:.0f} s'
    f' ({reason}): is it started, is the address its own, does a firewall let'
    ' the port through?'
  )
