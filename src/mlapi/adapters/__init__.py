"""One library each, translated at the border. None imports another; `mlapi.bootstrap` puts them together."""
