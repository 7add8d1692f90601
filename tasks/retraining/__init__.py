"""Data that arrive: looked at, refused or taken in, and what came of it."""
