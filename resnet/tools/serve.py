"""Serves a network as a web page and as POST /predict.

  python -m resnet.tools.serve --weights=SOURCE
  curl 127.0.0.1:8000/predict -F image=@cat.jpg -F image=@dog.jpg

SOURCE is as for resnet.tools.predict. The page is http://127.0.0.1:8000; other
machines can reach it only with --host. Images of concurrent requests share
batches; /metrics is for Prometheus. On SIGTERM or Ctrl-C, the server answers
accepted requests before it exits. Needs: pip install -r requirements-serve.txt
"""

import argparse
import socket
import sys

from resnet.errors import InputError, reason_of
from resnet.export.exported import open_network
from resnet.inference.network import add_arguments, source_of
from resnet.inference.predictor import Predictor
from resnet.tools import command

# Sizes of compiled batches, up to --max-batch.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_WAIT_SECONDS = 0.005


def main(args: argparse.Namespace) -> None:
  """Compiles the network and serves it until a signal."""
  try:
    import uvicorn

    from resnet.serving.app import Server, create_app
  except ImportError as error:
    raise InputError(
      f'Serving needs more packages ({error}): type pip install -r'
      ' requirements-serve.txt in a clone of the repository'
    ) from None
  try:  # Take the port before anything is compiled.
    listener = socket.create_server((args.host, args.port), backlog=1024)
  except (OSError, OverflowError) as error:
    flags = f'--host={args.host} --port={args.port}'
    raise InputError(
      f'{flags}: {reason_of(error)}. Type another --port.'
    ) from None
  with listener:
    network = open_network(source_of(args), args.model, args.dtype)
    outputs = [n for n in ('probabilities', 'cam') if n in network.outputs]
    sizes = [size for size in _SIZES if size <= args.max_batch]
    predictor = Predictor(network, outputs, sizes)
    predictor.compile()
    server = Server(
      predictor,
      wait_seconds=_WAIT_SECONDS,
      max_waiting=args.max_waiting,
      max_seconds=args.request_seconds,
    )
    config = uvicorn.Config(
      create_app(server),
      http='h11',
      ws='none',
      log_level='warning',
      access_log=False,
      timeout_graceful_shutdown=args.grace_seconds,
    )
    host, port = listener.getsockname()[:2]
    print(f'{network.name}: http://{host}:{port}', flush=True)
    try:
      uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again on exit.
      print(f'Stopped by Ctrl-C. Requests answered: {server.num_requests:,}.')
      sys.exit(130)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('serve', __doc__)
  add_arguments(result)
  add = result.add_argument_group('address').add_argument
  text = 'default: 127.0.0.1; 0.0.0.0 accepts requests from all machines'
  add('--host', default='127.0.0.1', metavar='ADDRESS', help=text)
  text = 'default: 8000; 0: any free port'
  add('--port', type=int, default=8000, metavar='N', help=text)
  add = result.add_argument_group('limits').add_argument
  text = 'images per batch; default: 16'
  add('--max-batch', type=int, choices=_SIZES, default=16, help=text)
  for name, default, text in (
    ('max-waiting', 256, 'images that may wait; further requests get a 503'),
    ('request-seconds', 10, 'timeout for the body of a request'),
    ('grace-seconds', 30, 'timeout for accepted requests after a signal'),
  ):
    count = {'type': command.positive, 'metavar': 'N'}
    text = f'{text}; default: {default}'
    add(f'--{name}', default=default, help=text, **count)
  return result


if __name__ == '__main__':
  command.run(main, parser())
