"""The forms of a dataset. Each form is an :class:`adapruner.data.Source`."""
