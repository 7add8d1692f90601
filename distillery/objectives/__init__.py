"""What the student must match.

An objective is one short file with a pure function of (student, teacher, target) and a module around it, its
parameters in `configs`, and one line in `registry.OBJECTIVES`. Nothing is imported here, so that parameters can be
checked without PyTorch.
"""
