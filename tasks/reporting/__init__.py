"""How results are told: words, charts and pages."""
