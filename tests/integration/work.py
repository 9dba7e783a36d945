"""Size and options of the workload that the fault tests convert (made by the fixture `workload`)."""

UNITS = 20
SAMPLES = 8
"""images of a unit"""
SIDE = 320
"""pixels"""
WORK = ["--tokenizer", "patch:4x4,k=256", "--unit-samples", str(SAMPLES)]
"""options of every conversion of it"""
