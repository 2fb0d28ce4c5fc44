"""Reads images from request bodies, limited in bytes and in time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
import contextlib
import dataclasses

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

_TYPES = ('image/png', 'image/jpeg', 'image/jpg', 'application/octet-stream')
_FORM = 'multipart/form-data'


@dataclasses.dataclass(kw_only=True)
class BodyReader:
  """Reads bodies; limits the size of each and of all together.

  Attributes:
    max_bytes: largest size of a body.
    max_held_bytes: largest total size of the bodies of unanswered requests.
    max_seconds: how long a body may take to arrive.
  """

  max_bytes: int
  max_held_bytes: int
  max_seconds: float
  _held_bytes: int = 0

  @contextlib.asynccontextmanager
  async def read(
    self, request: Request
  ) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Yields the name and bytes of each image of a request.

    The body counts towards `max_held_bytes` until the context ends.
    """
    size = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
      nonlocal size
      async for chunk in request.stream():
        size += len(chunk)
        self._held_bytes += len(chunk)
        self._check_size(size)
        yield chunk

    claimed = request.headers.get('content-length', '')
    self._check_size(int(claimed) if claimed.isdigit() else 0)
    try:
      yield await self._read(request, chunks())
    finally:
      self._held_bytes -= size

  def _check_size(self, size: int) -> None:
    if size > self.max_bytes:
      text = f'The body limit is {self.max_bytes:,} bytes: send fewer images.'
      raise HTTPException(413, text)
    if self._held_bytes > self.max_held_bytes:
      text = 'Too many bytes are waiting: try again later.'
      raise HTTPException(503, text, {'Retry-After': '1'})

  async def _read(
    self, request: Request, chunks: AsyncGenerator[bytes, None]
  ) -> list[tuple[str, bytes]]:
    kind = request.headers.get('content-type', '').partition(';')[0]
    kind = kind.strip().lower()
    if kind not in (*_TYPES, _FORM):
      expected = ', '.join(_TYPES)
      text = f'The content type is {kind!r}; expected {expected} or {_FORM}.'
      raise HTTPException(415, text)
    try:
      async with asyncio.timeout(self.max_seconds):
        if kind != _FORM:
          return [('', b''.join([chunk async for chunk in chunks]))]
        parser = MultiPartParser(request.headers, chunks)
        parser.spool_max_size = self.max_bytes + 1  # Never write to disk.
        form = await parser.parse()
    except TimeoutError:
      text = f'The body took more than {self.max_seconds:g} s to arrive.'
      raise HTTPException(408, text, {'Connection': 'close'}) from None
    except ClientDisconnect:  # Only the metrics record this.
      raise HTTPException(400, 'The client disconnected.') from None
    except MultiPartException as error:
      text = f'The form cannot be read: {error.message}'
      raise HTTPException(400, text) from None
    files = [f for _, f in form.multi_items() if isinstance(f, UploadFile)]
    if not files:
      raise HTTPException(400, 'The form holds no file.')
    return [(file.filename or '', await file.read()) for file in files]
