"""Parts of `documents.py`: corpora as vectors, what a method keeps of them, tables and plots."""
