"""Losses of other libraries' models, sample by sample. Each module needs the library it is for."""
