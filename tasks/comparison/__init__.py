"""Many methods on one teacher and one set of soft targets: planned, trained side by side, told with statistics."""
