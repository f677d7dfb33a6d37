"""What every kind of link must do, whatever moves the bytes, as functions that need nothing but two workers.

pytest runs them (test_conformance.py), and scripts/gpu_check where there are two GPUs. Each is called with a World, and
its name states the rule. A new kind of link is one entry in conformance_kinds.py.
"""

from . import conformance_faults, conformance_moves

CHECKS = (*conformance_moves.CHECKS, *conformance_faults.CHECKS)
