"""Connects all processes before JAX does, to name those that are missing.

Process 0 listens on the port that JAX's coordinator will use; the other
processes register there.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

from resnet.errors import InputError, RunError, reason_of


class Peer:
  """A connection to another process: JSON objects, one per line.

  Attributes:
    name: number, host and process id, for messages.
  """

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lines = connection.makefile(encoding='utf-8')
    self._lock = threading.Lock()
    self.name = ''

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends an object; a closed connection is reported by `receive`."""
    with self._lock, contextlib.suppress(OSError):
      self._connection.sendall(f'{json.dumps(message)}\n'.encode())

  def receive(self, seconds: float) -> dict[str, Any]:
    """Returns the next object; closes the connection on an error.

    Raises:
      OSError: a TimeoutError after `seconds`, or another error if the
        connection was closed.
      ValueError: the line is not a JSON object.
    """
    self._connection.settimeout(seconds)
    try:
      line = self._lines.readline(1_000_000)
      if not line:
        raise ConnectionResetError('the connection was closed')
      if not isinstance(message := json.loads(line), dict):
        raise ValueError('not a JSON object')
    except (OSError, ValueError):
      self.close()
      raise
    return message

  def close(self) -> None:
    """Closes the connection."""
    self._lines.close()
    self._connection.close()


def name(index: int) -> str:
  """Returns the name by which messages refer to this process."""
  return f'Process {index} ({socket.gethostname()}, pid {os.getpid()})'


def meet(
  address: str, count: int, index: int, seconds: float
) -> dict[int, Peer]:
  """Waits until all processes are connected, but not longer than `seconds`.

  The address of process 0 is 'HOST:PORT'; `index` is the number of this one.

  Returns:
    The connections by process number: process 0 has one to each other process,
    each other process has one to process 0.

  Raises:
    InputError: the address is wrong or in use, two processes have the same
      number, or they were given different numbers of processes.
    RunError: some are missing after `seconds`; the message names them.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise InputError(
      f'--coordinator_address={address} is not HOST:PORT: type an address such'
      ' as 10.0.0.1:1234.'
    )
  if index == 0:
    return _coordinate(int(port), count, seconds)
  request = {'name': name(index), 'process_id': index, 'num_processes': count}
  return {0: _register(host, int(port), request, seconds)}


def _coordinate(port: int, count: int, seconds: float) -> dict[int, Peer]:
  """Accepts the other processes; sends each our name or the error."""
  deadline = time.monotonic() + seconds
  connected: list[Peer] = []
  peers: dict[int, Peer] = {}
  try:
    with _listen(port, count) as server:
      while len(peers) < count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        peer = Peer(server.accept()[0])
        try:
          request = peer.receive(5.0)
          peer.name, index = request['name'], int(request['process_id'])
          their_count = request['num_processes']
        # The connection is not from one of our processes.
        except (OSError, ValueError, KeyError, TypeError):
          peer.close()
          continue
        connected.append(peer)
        if their_count != count:
          raise InputError(
            f'--num_processes is {count} in process 0, {their_count} in'
            f' process {index}: start all with the same number.'
          )
        if index in peers or index not in range(1, count):
          raise InputError(
            f'--process_id={index} was given to two processes, or is not one of'
            f' {count}.'
          )
        peers[index] = peer
  except TimeoutError:
    missing = sorted(set(range(1, count)) - peers.keys())
    error = RunError(
      f'Process {", ".join(map(str, missing))} of {count} did not connect'
      f' within {seconds:g} s (--join_seconds).'
    )
  except InputError as wrong:
    error = wrong
  else:
    for peer in peers.values():
      peer.send({'name': name(0)})
    return peers
  for peer in connected:
    peer.send({'error': str(error)})
    peer.close()
  raise error


def _listen(port: int, backlog: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(
      ('', port), family=family, dualstack_ipv6=both, backlog=backlog
    )
  except OSError as error:
    raise InputError(
      f'Process 0 cannot listen on port {port} of --coordinator_address:'
      f' {os.strerror(error.errno or 0)}. Choose another port.'
    ) from None


def _register(
  host: str, port: int, request: Mapping[str, Any], seconds: float
) -> Peer:
  start, reason = time.monotonic(), ''
  while (left := start + seconds - time.monotonic()) > 0:
    try:
      peer = Peer(socket.create_connection((host, port), min(left, 5.0)))
      peer.send(request)
      # Process 0 may have begun to wait later than this process.
      reply = peer.receive(2 * seconds + 5)
    except (OSError, ValueError) as error:
      reason = reason_of(error)
      time.sleep(0.2)
      continue
    if 'error' in reply:
      peer.close()
      raise RunError(reply['error'])
    peer.name = reply['name']
    return peer
  raise RunError(
    f'Process 0 could not be reached at {host}:{port} within {seconds:.0f} s'
    f' ({reason}). Check that it is running, that the address is right and that'
    ' no firewall blocks the port.'
  )
