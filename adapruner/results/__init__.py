"""The outcome of a run, and the formats that it is exported to."""
