"""Parts of `benchmarks/convert.py`: its inputs, the processes it measures, and how CPU and memory are measured."""
