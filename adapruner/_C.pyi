"""The native module (csrc/python.cpp)."""

state_slots: dict[str, int]
state_size: int
not_finite_capacity: int
never_visited: int
oldest: int

def build_info() -> dict[str, object]: ...
