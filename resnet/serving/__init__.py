"""A trained network behind a web page and an HTTP endpoint."""
