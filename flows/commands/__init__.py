"""One file a command of `python -m flows`; `flows.dispatch` calls them."""
