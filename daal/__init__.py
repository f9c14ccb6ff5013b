"""The method: Domain Adaptive Attention Learning in plain PyTorch and NumPy.

Nothing here imports Ray: the whole package reads, tests and runs on one machine.
"""

__version__ = "0.1.0"
# As pip knows this project: on the package index, "daal" is Intel's library.
DISTRIBUTION = "daal-reid"
