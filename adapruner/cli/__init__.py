"""The command ``adapruner``."""
