"""Commands: python -m resnet.tools.NAME --help, one module or package each."""
