"""One file a run; `get_config()` returns a locked ConfigDict."""
