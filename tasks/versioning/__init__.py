"""What DVC knows: the graph of stages and its cache."""
