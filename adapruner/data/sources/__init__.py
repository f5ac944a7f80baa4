"""Forms that datasets come in, each as a :class:`adapruner.data.Source`."""
