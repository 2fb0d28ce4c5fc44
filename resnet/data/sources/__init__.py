"""Random-access sources of labelled images, one module per format.

To add a format, write a module with a function that returns a `base.Source`,
and register that function in `registry`.
"""
