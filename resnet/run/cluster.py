"""Several processes: all there, of one mind, and told when one is gone.

JAX's runtime connects them. Where one is missing or dies it ends the others
with a page of C++ log; here it is told before, in one line and by name.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax._src import clusters, distributed

from resnet.errors import InputError, RunError
from resnet.run import roll_call
from resnet.run.signals import leave

_BEAT_SECONDS = 1.0
# JAX's own heartbeat is there for the case that ours is not heard.
_JAX_LATER_SECONDS = 60
_PREFIX = 'resnet/processes/'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How this process finds the others.

  Attributes:
    coordinator_address: 'HOST:PORT' of process 0, which need not be reached by
      others than the processes; None: JAX finds it, on TPU pods, Slurm, GKE.
    num_processes: of the run; None as above.
    process_id: of this one, from 0; None as above.
    required: without an address, finding nothing is an error.
    join_seconds: for the others to come.
    heartbeat_seconds: of silence, after which a process counts as dead.
  """

  coordinator_address: str | None
  num_processes: int | None
  process_id: int | None
  required: bool
  join_seconds: int
  heartbeat_seconds: int

  def __post_init__(self):
    given = {
      '--coordinator_address': self.coordinator_address,
      '--num_processes': self.num_processes,
      '--process_id': self.process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
      raise InputError(
        f'{" and ".join(missing)} are missing: several processes need'
        ' --coordinator_address=HOST:PORT --num_processes=N --process_id=I.'
      )
    if self.num_processes is not None and self.process_id is not None:
      if self.num_processes < 1:
        raise InputError(f'--num_processes={self.num_processes}: at least 1.')
      if not 0 <= self.process_id < self.num_processes:
        raise InputError(
          f'--process_id={self.process_id} is none of {self.num_processes}'
          f' processes: they are 0 to {self.num_processes - 1}.'
        )
    for name in ('join_seconds', 'heartbeat_seconds'):
      if getattr(self, name) < 1:
        raise InputError(f'--{name}={getattr(self, name)}: at least 1.')


def join(options: Options) -> 'Cluster | None':
  """Connects this process with the others; before JAX does anything else.

  Returns:
    None where there is one process.

  Raises:
    InputError: the address, or the environment, is wrong.
    RunError: others have not come in time; the message says which.
  """
  address, count, index, device_ids = _find(options)
  if address is None or count is None or index is None:
    if options.required:
      raise InputError(
        '--distributed: no TPU pod, Slurm or GKE was found. Give'
        ' --coordinator_address=HOST:PORT --num_processes=N --process_id=I.'
      )
    return None
  if count == 1:
    return None
  connections = roll_call.hold(
    address,
    num_processes=count,
    process_id=index,
    seconds=options.join_seconds,
  )
  jax.distributed.initialize(
    address,
    count,
    index,
    device_ids,
    cluster_detection_method='deactivate',
    initialization_timeout=options.join_seconds,
    heartbeat_timeout_seconds=options.heartbeat_seconds + _JAX_LATER_SECONDS,
  )
  # JAX's handler would keep the signal from us.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  return Cluster(options, connections)


def _find(options: Options) -> tuple[Any, Any, Any, Any]:
  """Returns (address, number of processes, number of this one, its devices).

  None is what is not known. JAX would find the same, but where a process does
  not come it ends the others with a page of C++ log, and names none.
  """
  if options.coordinator_address is not None:
    given = options.coordinator_address, options.num_processes
    return *given, options.process_id, None
  return clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, options.join_seconds
  )


class Cluster:
  """This process among the others, told by a thread how they are.

  They write what they have to say into the key-value store of JAX's runtime,
  which has no public name yet.
  """

  def __init__(self, options: Options, connections: dict[int, socket.socket]):
    """Of `options`, and the connections that the roll call has left."""
    self._client: Any = distributed.global_state.client
    self._join_seconds = options.join_seconds
    self._heartbeat_seconds = options.heartbeat_seconds
    self._index, self._count = jax.process_index(), jax.process_count()
    self._owner = f'{socket.gethostname()}, pid {os.getpid()}'
    self._beats, self._last_beat = 0, time.monotonic()
    self._lock = threading.Lock()
    self._end: dict[str, Any] | None = None
    self._code: int | None = None  # Once this process is done.
    # Of each process: what it said last, and since when.
    self._heard: dict[int, tuple[str, float]] = {}
    threading.Thread(target=self._watch, daemon=True).start()
    threading.Thread(target=self._watch_beats, daemon=True).start()
    self._connections = connections
    if connections:
      threading.Thread(target=self._watch_connections, daemon=True).start()

  def agree(self, facts: Mapping[str, Any]) -> None:
    """Compares what should be the same in all processes.

    Raises:
      InputError: in all of them, if it is not; the message says where.
      RunError: some have not come to this point in time.
    """
    name = 'resnet/facts/'
    self._client.key_value_set(f'{name}{self._index}', json.dumps(dict(facts)))
    try:
      self._client.wait_at_barrier(name, self._join_seconds * 1000)
    except jax.errors.JaxRuntimeError:
      there = {int(key.rpartition('/')[2]) for key, _ in self._read(name)}
      missing = sorted(set(range(self._count)) - there)
      raise RunError(
        f'Waited {self._join_seconds} s (--join_seconds) for process'
        f' {", ".join(map(str, missing))} to read its config and data.'
      ) from None
    all_facts = {
      int(key.rpartition('/')[2]): json.loads(text)
      for key, text in self._read(name)
    }
    if differences := _differences(all_facts):
      raise InputError(
        f'The processes differ: {"; ".join(differences)}. Start all of them'
        ' with the same code, command and data.'
      )

  def fail(self, message: str, code: int) -> None:
    """Lets the others end with the reason why this process does."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Process 0 is gone.
      self._say_end({'state': 'failed', 'message': message, 'code': code})
    if self._index == 0:
      # With process 0 goes what it has said.
      time.sleep(3 * _BEAT_SECONDS)

  def wait_for_news(self) -> None:
    """After an error that may come of the death of another process.

    The thread ends this one, if that is so, when it is sure.
    """
    time.sleep(self._heartbeat_seconds + 3 * _BEAT_SECONDS)

  def close(self, code: int) -> bool:
    """Says that this process is done, and waits until all are.

    With process 0 goes what the others say, and JAX ends them: it must not be
    the first. Who fails or falls silent meanwhile is not waited for: this
    process has done all that it was to do, and ends with its own code.

    Args:
      code: to end with, should process 0 end before this one.

    Returns:
      Whether all are done, and disconnected from each other.
    """
    self._code = code
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Process 0 is gone.
      self._say_end({'state': 'done'})
      while (states := self.states()).count('done') < self._count:
        if 'failed' in states or 'silent' in states:
          return False
        time.sleep(_BEAT_SECONDS / 20)
      jax.distributed.shutdown()
      return True
    return False

  def states(self) -> list[str]:
    """Returns the state of each process that has reported one.

    A state is 'alive', 'done', 'failed' or, after `heartbeat_seconds` without a
    report, 'silent'.
    """
    result = []
    for key, text in self._read(_PREFIX):
      silence = self._note(int(key.rpartition('/')[2]), text)
      state = json.loads(text)['state']
      is_silent = state == 'alive' and silence > self._heartbeat_seconds
      result.append('silent' if is_silent else state)
    return result

  def _note(self, index: int, text: str) -> float:
    """Returns for how many seconds process `index` has said the same."""
    now = time.monotonic()
    if index not in self._heard or self._heard[index][0] != text:
      self._heard[index] = (text, now)
    return now - self._heard[index][1]

  def _say_end(self, end: dict[str, Any]) -> None:
    with self._lock:
      self._end = end
    self._beat()

  def _beat(self) -> None:
    with self._lock:
      self._beats += 1
      said = self._end or {'state': 'alive', 'beat': self._beats}
      text = json.dumps({**said, 'owner': self._owner})
      self._client.key_value_set(
        f'{_PREFIX}{self._index}', text, allow_overwrite=True
      )

  def _read(self, prefix: str) -> list[tuple[str, str]]:
    return self._client.key_value_dir_get(prefix)

  def _watch(self) -> None:
    try:
      while self._end is None:
        self._beat()
        self._last_beat = time.monotonic()
        for key, text in self._read(_PREFIX):
          self._hear(int(key.rpartition('/')[2]), text)
        time.sleep(_BEAT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
      if self._end is None:
        self._leave(f'Process 0 does not answer ({str(error).splitlines()[0]})')

  def _watch_beats(self) -> None:
    """Notices that process 0 stands still: then `_beat` does not return."""
    silence = 0.0
    while self._end is None and silence <= self._heartbeat_seconds:
      time.sleep(_BEAT_SECONDS)
      silence = time.monotonic() - self._last_beat
    if self._end is None:
      self._leave(
        f'{self._name(0)} has not answered for {silence:.0f} s'
        ' (--heartbeat_seconds)'
      )

  def _watch_connections(self) -> None:
    """Notices at once that a process has ended.

    The end of process 0 makes JAX abort this one: be there before.
    """
    with selectors.DefaultSelector() as selector:
      for index, connection in self._connections.items():
        selector.register(connection, selectors.EVENT_READ, index)
      gone = selector.select()[0][0].data
    if gone > 0:
      time.sleep(2 * _BEAT_SECONDS)  # It may have said why.
    if self._end is None:
      self._leave(f'{self._name(gone)} is gone')
    if gone == 0 and self._code is not None:
      leave(self._code)

  def _hear(self, index: int, text: str) -> None:
    """Ends this process if process `index` has failed, or is silent."""
    silence = self._note(index, text)
    said = json.loads(text)
    name = self._name(index)
    if index == self._index or said['state'] == 'done':
      return
    if said['state'] == 'failed':
      self._leave(f'{name} ended: {said["message"]}', said['code'])
    if silence > self._heartbeat_seconds:
      self._leave(
        f'{name} has not been heard of for {silence:.0f} s'
        ' (--heartbeat_seconds)'
      )

  def _name(self, index: int) -> str:
    """Returns who a process is, as far as it has been heard of."""
    if index not in self._heard:
      return f'Process {index}'
    return f'Process {index} ({json.loads(self._heard[index][0])["owner"]})'

  def _leave(self, message: str, code: int = 1) -> None:
    if code == 1:
      message += '. The same commands go on from the newest checkpoint.'
    print('error:', message, file=sys.stderr)
    if self._index == 0:
      self.fail(message, code)
    leave(code)


def _differences(all_facts: Mapping[int, Mapping[str, Any]]) -> list[str]:
  """Returns where processes differ from process 0, a sentence a field."""
  result = []
  for index in sorted(all_facts):
    mine, first = all_facts[index], all_facts[0]
    result += [
      f'{field} is {first.get(field)!r} in process 0, {mine.get(field)!r} in'
      f' process {index}'
      for field in sorted(mine.keys() | first.keys())
      if mine.get(field) != first.get(field)
    ]
  return result[:5]
