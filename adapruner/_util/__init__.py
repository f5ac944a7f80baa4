"""What every layer may use: files, checks of arguments, seeds, optional dependencies."""
