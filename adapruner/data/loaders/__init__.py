"""The loader on torch's DataLoader, and the choice of a loader."""
