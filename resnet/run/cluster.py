"""Several processes of one run: they join, compare configs, and end together.

JAX's runtime connects them, and aborts all with a page of C++ log when one is
missing or dies. Our own connections end them earlier, with one line that names
that process: they carry heartbeats and the reason of a failure.
"""

import collections
from collections.abc import Mapping
import json
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import clusters  # JAX has no public name to detect a cluster.

from resnet.errors import InputError, RunError
from resnet.output import exit_immediately
from resnet.run.provenance import code_hash
from resnet.run.rendezvous import Peer, meet, name

_BEAT_SECONDS = 1.0
# JAX's own heartbeat is the fallback if ours fails.
_JAX_LATER_SECONDS = 60


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  required: bool,
  join_seconds: int,
  heartbeat_seconds: int,
) -> 'Cluster | None':
  """Connects this process with the others; before JAX does anything else.

  Args:
    coordinator_address: 'HOST:PORT' of process 0; None: JAX finds this and the
      next two on TPU pods, Slurm and GKE.
    num_processes: of the run.
    process_id: of this process, from 0.
    required: raise if nothing is found.
    join_seconds: how long to wait for the others.
    heartbeat_seconds: a process that is silent for longer counts as dead.

  Returns:
    None if there is one process.

  Raises:
    InputError: the flags, the address or the environment are wrong.
    RunError: processes are missing; the message names them.
  """
  found: Any = coordinator_address, num_processes, process_id, None
  num_given = sum(value is not None for value in found)
  if not num_given:
    detect: Any = clusters.ClusterEnv.auto_detect_unset_distributed_params
    found = detect(*found, None, join_seconds)
  address, count, index, device_ids = found
  if address is None or count is None or index is None:
    if required or num_given:
      what = '' if num_given else 'no TPU pod, Slurm or GKE was found: '
      raise InputError(
        f'{what}several processes need --coordinator_address=HOST:PORT'
        ' --num_processes=N --process_id=I.'
      )
    return None
  if index not in range(count):
    raise InputError(
      f'--process_id={index} is none of {count} processes, 0 to {count - 1}.'
    )
  if count == 1:
    return None
  peers = meet(address, count, index, join_seconds)
  cluster = Cluster(index, peers, join_seconds, heartbeat_seconds)
  jax.distributed.initialize(
    address,
    count,
    index,
    device_ids,
    cluster_detection_method='deactivate',
    initialization_timeout=join_seconds,
    heartbeat_timeout_seconds=heartbeat_seconds + _JAX_LATER_SECONDS,
  )
  # JAX's handler would keep the signal from us.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  return cluster


class Cluster:
  """This process among the others; its threads end it when one is gone."""

  def __init__(
    self,
    index: int,
    peers: Mapping[int, Peer],
    join_seconds: int,
    heartbeat_seconds: int,
  ):
    """Begins to listen to the peers that the rendezvous has connected."""
    self._index = index
    self._peers = peers
    self._join_seconds = join_seconds
    self._heartbeat_seconds = heartbeat_seconds
    # What the peers have said, by its kind and their number.
    self._received: dict[str, dict[int, Any]] = collections.defaultdict(dict)
    self._news = threading.Condition()
    self._code: int | None = None  # Once this process is done.
    self._ending = threading.Lock()  # Never released: one thread ends it.
    threading.Thread(target=self._beat, daemon=True).start()
    for peer_index in peers:
      threading.Thread(
        target=self._receive, args=[peer_index], daemon=True
      ).start()

  def agree(self, facts: Mapping[str, Any]) -> None:
    """Compares what should be the same in all processes.

    Raises:
      InputError: they differ; in process 0, with which the others end.
      RunError: processes did not get here in time.
    """
    facts = json.loads(json.dumps({**facts, 'code': code_hash()}))
    seconds = self._join_seconds
    if self._index > 0:
      self._send(facts=facts)
      seconds *= 2  # If others are missing, process 0 says which.
    if missing := self._wait_for('facts', seconds):
      raise RunError(
        f'Waited {seconds} s (--join_seconds) for process'
        f' {", ".join(map(str, missing))} to read its config and data.'
      )
    if self._index == 0:
      _check_same({0: facts, **self._received['facts']})
      self._send(facts=facts)

  def fail(self, message: str, code: int) -> None:
    """Lets the others end with the reason why this process does."""
    self._ending.acquire()
    self._send_end(f'{name(self._index)} ended: {message}', code)

  def wait_for_news(self) -> None:
    """Gives the threads time to end this process if another one has died."""
    time.sleep(self._heartbeat_seconds + 3 * _BEAT_SECONDS)

  def close(self, code: int) -> None:
    """Waits until all are done, and disconnects.

    JAX aborts a process whose process 0 is gone, so none may end first. If
    another one fails meanwhile, this one still ends with `code`.
    """
    self._code = code
    if self._index > 0:
      self._send(done=True)
    self._wait_for('done')
    if self._index == 0:
      self._send(done=True)
    jax.distributed.shutdown()

  def _wait_for(self, kind: str, seconds: float | None = None) -> list[int]:
    """Waits until all peers have said this; returns who has not in time."""
    said = self._received[kind]
    with self._news:
      self._news.wait_for(lambda: len(said) == len(self._peers), seconds)
      return sorted(self._peers.keys() - said.keys())

  def _send(self, **said: Any) -> None:
    for peer in self._peers.values():
      peer.send(said)

  def _send_end(self, message: str, code: int) -> None:
    self._send(end=message, code=code)
    if self._index == 0:
      # JAX aborts the others as soon as it is gone; they must end before.
      time.sleep(2 * _BEAT_SECONDS)

  def _beat(self) -> None:
    while True:
      self._send()
      time.sleep(_BEAT_SECONDS)

  def _receive(self, index: int) -> None:
    """Listens to a peer until it is done; its end ends this process."""
    peer, said = self._peers[index], {}
    try:
      while 'end' not in said:
        said = peer.receive(self._heartbeat_seconds)
        with self._news:
          for kind, value in said.items():
            self._received[kind][index] = value
          self._news.notify_all()
        if 'done' in said:
          return
    except TimeoutError:
      said['end'] = (
        f'{peer.name} has not been heard of for {self._heartbeat_seconds} s'
        ' (--heartbeat_seconds)'
      )
    except (OSError, ValueError):
      said['end'] = f'{peer.name} is gone'
    self._exit(said['end'], said.get('code', 1))

  def _exit(self, message: str, code: int) -> NoReturn:
    self._ending.acquire()
    if self._code is not None:
      exit_immediately(self._code)
    self._send_end(message, code)  # Process 0 tells the others.
    if code == 1:
      message += '. The same commands continue from the newest checkpoint.'
    print('error:', message, file=sys.stderr)
    exit_immediately(code)


def _check_same(all_facts: Mapping[int, Mapping[str, Any]]) -> None:
  """Raises an InputError that says where processes differ from process 0."""
  first = all_facts[0]
  differences = [
    f'{field} is {first.get(field)!r} in process 0, {mine.get(field)!r} in'
    f' process {index}'
    for index, mine in sorted(all_facts.items())
    for field in sorted(mine.keys() | first.keys())
    if mine.get(field) != first.get(field)
  ]
  if differences:
    raise InputError(
      f'The processes differ: {"; ".join(differences[:5])}. Start all of them'
      ' with the same code, command and data.'
    )
