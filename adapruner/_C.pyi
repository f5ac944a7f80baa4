"""The native module (csrc/python.cpp)."""

state_slots: dict[str, int]
state_size: int
error_kinds: dict[str, int]
not_finite_capacity: int
never_visited: int
oldest: int

def build_info() -> dict[str, object]: ...
