"""Sources whose samples are ids already: token datasets, and the files of other programs."""
