"""When things run and in what order; the command line is `python -m flows`."""
