"""Random-access sources of labelled images, one module per format.

To add one, write a module with a function that returns a `base.Source`, and
register it in `registry`.
"""
