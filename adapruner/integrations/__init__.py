"""Per-sample losses for models of other libraries. Each module needs its library."""
