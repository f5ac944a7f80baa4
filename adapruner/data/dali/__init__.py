"""The DALI loader: decoding and augmentation in native threads (the extra "dali")."""
