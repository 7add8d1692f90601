"""Which registered version serves, what a new one must show to replace it, and the record of every change."""
