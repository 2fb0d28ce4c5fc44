"""One file per recipe; its `get_config()` returns a locked ConfigDict."""
