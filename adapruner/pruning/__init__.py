"""Gates, selections and the order of an epoch. This layer knows sample ids, never data."""
