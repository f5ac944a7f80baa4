"""What is learned of samples and what follows from it. This layer knows ids, never data."""
