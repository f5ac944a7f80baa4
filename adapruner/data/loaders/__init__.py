"""Readers of samples: torch's DataLoader, and which loader to choose."""
