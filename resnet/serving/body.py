"""The images in the body of a request."""

from typing import Any

import python_multipart
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_TYPES = ('image/png', 'image/jpeg', 'image/jpg', 'application/octet-stream')


async def read_files(request: Request) -> list[tuple[str, bytes]]:
  """Returns name and bytes of each image of a request, kept in memory.

  Raises:
    HTTPException: the type is another one, or the form is damaged or empty.
  """
  kind = request.headers.get('content-type', '').partition(';')[0]
  kind = kind.strip().lower()
  if kind in _TYPES:
    return [('', await _body(request))]
  if kind != 'multipart/form-data':
    raise HTTPException(
      415,
      f'The type is {kind!r}; expected {", ".join(_TYPES)} or'
      ' multipart/form-data.',
    )
  body = await _body(request)
  files = []

  def on_file(file: Any) -> None:
    file.file_object.seek(0)
    name = (file.file_name or b'').decode(errors='replace')
    files.append((name, file.file_object.read()))

  try:
    parser = python_multipart.create_form_parser(
      {'Content-Type': request.headers['content-type'].encode()},
      None,
      on_file,
      # Nothing goes to the disk.
      config={'MAX_MEMORY_FILE_SIZE': len(body) + 1},
    )
    parser.write(body)
    parser.finalize()
  except Exception as error:
    raise HTTPException(400, f'The form cannot be read: {error}') from None
  if not files:
    raise HTTPException(400, 'The form holds no file.')
  return files


async def _body(request: Request) -> bytes:
  try:
    return await request.body()
  except ClientDisconnect:  # Nobody reads this answer; it is counted.
    raise HTTPException(400, 'The client has gone.') from None
