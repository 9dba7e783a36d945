"""Parts of benchmarks/codec.py: ids of real images, rival coders, measurements and plots."""
