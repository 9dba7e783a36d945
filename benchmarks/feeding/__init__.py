"""Parts of the loader benchmark (`benchmarks/loader.py`)."""
