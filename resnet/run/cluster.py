"""Lets the processes of a run join, compare configs and end together.

When a process is missing or dies, JAX's runtime aborts all others with a page
of C++ log. Our own connections carry heartbeats and failures, so that the
others end earlier, with one line that names the missing or dead process.
"""

import collections
from collections.abc import Mapping
import dataclasses
from functools import partial
import json
import signal
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import clusters  # JAX has no public name to detect a cluster.

from resnet.errors import InputError, RunError
from resnet.output import exit_immediately, print_error
from resnet.run.provenance import code_hash
from resnet.run.rendezvous import Peer, meet, name

_BEAT_SECONDS = 1.0
# JAX's heartbeat, the fallback if ours fails, times out this much later.
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
  """Connects this process with the others; call it before JAX is used.

  Args:
    coordinator_address: 'HOST:PORT' of process 0. On TPU pods, Slurm and GKE,
      JAX finds this and the next two arguments if all are None.
    num_processes: number of processes of the run.
    process_id: number of this process, from 0.
    required: raise an error if no cluster is given or found.
    join_seconds: how long to wait for the others.
    heartbeat_seconds: a process that is silent for longer counts as dead.

  Returns:
    The connections; None if there is only one process.

  Raises:
    InputError: the flags, the address or the environment are wrong.
    RunError: processes are missing; the message names them.
  """
  found = _detect(
    (coordinator_address, num_processes, process_id), required, join_seconds
  )
  if found is None:
    return None
  address, count, index, device_ids = found
  if index not in range(count):
    raise InputError(
      f'--process_id={index} is not one of {count} processes, 0 to {count - 1}.'
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
  # Remove JAX's handler, which would intercept the signal.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  return cluster


def _detect(
  given: tuple[Any, ...], required: bool, join_seconds: int
) -> tuple[Any, ...] | None:
  """Returns address, count, index and devices; None for a single process."""
  num_given = sum(value is not None for value in given)
  found = (*given, None)
  if not num_given:
    detect: Any = clusters.ClusterEnv.auto_detect_unset_distributed_params
    found = detect(*found, None, join_seconds)
  if None not in found[:3]:
    return found
  if required or num_given:
    what = '' if num_given else 'No TPU pod, Slurm or GKE was found. '
    raise InputError(
      f'{what}Several processes need --coordinator_address=HOST:PORT'
      ' --num_processes=N --process_id=I.'
    )
  return None


@dataclasses.dataclass(eq=False)
class Cluster:
  """Connections with the other processes; if one dies, this process ends."""

  index: int
  peers: Mapping[int, Peer]
  join_seconds: int
  heartbeat_seconds: int

  def __post_init__(self):
    """Starts threads that send heartbeats and listen to the peers."""
    # The last message of each kind, by number of its sender.
    self._received: dict[str, dict[int, Any]] = collections.defaultdict(dict)
    self._arrival = threading.Condition()
    self._code: int | None = None  # Set once this process is done.
    # Never released, so that only one thread ends this process.
    self._ending = threading.Lock()
    for target in (self._beat, *(partial(self._listen, i) for i in self.peers)):
      threading.Thread(target=target, daemon=True).start()

  def agree(self, facts: Mapping[str, Any]) -> None:
    """Checks that `facts` and the code are the same in all processes.

    Raises:
      InputError: they differ; raised in process 0, which ends the others.
      RunError: a process did not send its facts in time.
    """
    facts = json.loads(json.dumps({**facts, 'code': code_hash()}))
    seconds = self.join_seconds
    if self.index > 0:
      self._send(facts=facts)
      seconds *= 2  # If others are missing, process 0 names them first.
    if missing := self._wait_for('facts', seconds):
      raise RunError(
        f'Process {", ".join(map(str, missing))} did not read its config and'
        f' data within {seconds} s (--join_seconds).'
      )
    if self.index == 0:
      _check_same({0: facts, **self._received['facts']})
      self._send(facts=facts)

  def fail(self, message: str, code: int) -> None:
    """Ends the other processes; they print why this one failed."""
    self._ending.acquire()
    self._send_end(f'{name(self.index)} ended: {message}', code)

  def wait_for_failure(self) -> None:
    """Gives the threads time to end this process if another one has died."""
    time.sleep(self.heartbeat_seconds + 3 * _BEAT_SECONDS)

  def close(self, code: int) -> None:
    """Waits until all processes are done, and disconnects.

    When process 0 exits, JAX aborts the others, so all wait for each other. If
    another process fails meanwhile, this one still exits with `code`.
    """
    self._code = code
    if self.index > 0:
      self._send(done=True)
    self._wait_for('done')
    if self.index == 0:
      self._send(done=True)
    jax.distributed.shutdown()

  def _wait_for(self, kind: str, seconds: float | None = None) -> list[int]:
    """Waits for this message from all peers; returns those that sent none."""
    received = self._received[kind]
    with self._arrival:
      self._arrival.wait_for(lambda: len(received) == len(self.peers), seconds)
      return sorted(self.peers.keys() - received.keys())

  def _send(self, **message: Any) -> None:
    for peer in self.peers.values():
      peer.send(message)

  def _send_end(self, message: str, code: int) -> None:
    self._send(end=message, code=code)
    if self.index == 0:
      # JAX aborts the others when process 0 exits; let them exit first.
      time.sleep(2 * _BEAT_SECONDS)

  def _beat(self) -> None:
    while True:
      self._send()
      time.sleep(_BEAT_SECONDS)

  def _listen(self, index: int) -> None:
    """Receives from a peer until it is done; exits if it fails or dies."""
    peer, message = self.peers[index], {}
    try:
      while 'end' not in message:
        message = peer.receive(self.heartbeat_seconds)
        with self._arrival:
          for kind, value in message.items():
            self._received[kind][index] = value
          self._arrival.notify_all()
        if 'done' in message:
          return
    except TimeoutError:
      message['end'] = (
        f'{peer.name} sent no heartbeat for {self.heartbeat_seconds} s'
        ' (--heartbeat_seconds)'
      )
    except (OSError, ValueError):
      message['end'] = f'{peer.name} has died'
    self._exit(message['end'], message.get('code', 1))

  def _exit(self, reason: str, code: int) -> NoReturn:
    self._ending.acquire()
    if self._code is not None:
      exit_immediately(self._code)
    self._send_end(reason, code)  # Process 0 forwards it to the others.
    if code == 1:
      reason += '. The same commands continue from the newest checkpoint.'
    exit_immediately(print_error(reason, code))


def _check_same(all_facts: Mapping[int, Mapping[str, Any]]) -> None:
  """Raises an InputError if a process differs from process 0."""
  first = all_facts[0]
  differences = [
    f'{field} is {first.get(field)!r} in process 0, {facts.get(field)!r} in'
    f' process {index}'
    for index, facts in sorted(all_facts.items())
    for field in sorted(facts.keys() | first.keys())
    if facts.get(field) != first.get(field)
  ]
  if differences:
    raise InputError(
      f'The processes differ: {"; ".join(differences[:5])}. Start all of them'
      ' with the same code, command and data.'
    )
