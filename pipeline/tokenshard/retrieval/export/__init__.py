"""Page vectors of a dataset in the layouts of other search engines."""
