"""HTTP/1.1 for clients that are slow, or that speak no HTTP.

How long a body may take is in `limits`; here is what an application never sees.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
  """uvicorn's connection, with bounds on what no application waits for.

  A request line with its headers must come in within some seconds; so must what
  is left of a body after the answer. All answers are JSON.
  """

  def __init__(self, *args: Any, max_seconds: float, **kwargs: Any):
    """As uvicorn makes one; `max_seconds` is the time for either."""
    super().__init__(*args, **kwargs)
    self._max_seconds = max_seconds
    self._timer: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    """Begins to wait for the first request."""
    super().connection_made(transport)
    self._watch()

  def data_received(self, data: bytes) -> None:
    """Stops to wait where `data` completes what was waited for."""
    super().data_received(data)
    self._watch()

  def on_response_complete(self) -> None:
    """Begins to wait for the next request."""
    super().on_response_complete()
    self._watch()

  def connection_lost(self, exc: Exception | None) -> None:
    """Waits for nothing any more."""
    super().connection_lost(exc)
    self._stop()

  def send_400_response(self, msg: str) -> None:
    """Answers what is no HTTP."""
    self._refuse(400, msg)

  def _watch(self) -> None:
    is_answered = self.conn.our_state is h11.DONE
    theirs = self.conn.their_state
    if theirs is not h11.IDLE and not (is_answered and theirs is h11.SEND_BODY):
      self._stop()
    elif not self._timer:
      self._timer = self.loop.call_later(self._max_seconds, self._cut_off)

  def _stop(self) -> None:
    if self._timer:
      self._timer.cancel()
      self._timer = None

  def _cut_off(self) -> None:
    if self.transport.is_closing():
      return
    has_begun, _ = self.conn.trailing_data
    if has_begun and self.conn.our_state is h11.IDLE:
      self._refuse(408, f'The headers took more than {self._max_seconds:g} s.')
    else:
      self.transport.close()

  def _refuse(self, status: int, message: str) -> None:
    body = json.dumps({'error': message}).encode()
    headers = [
      ('content-type', 'application/json'),
      ('content-length', str(len(body))),
      ('connection', 'close'),
    ]
    for event in (
      h11.Response(status_code=status, headers=headers),
      h11.Data(data=body),
      h11.EndOfMessage(),
    ):
      self.transport.write(self.conn.send(event) or b'')
    self.transport.close()
