"""Features in, pseudo-labels out: k-reciprocal distance, eps, DBSCAN, soft labels.

Pure functions on arrays; only `cluster.ray_run` and `cluster.warm_up` know Ray. No N x N array
anywhere but for cuML.
"""

DISTRIBUTION = "daal-reid"  # "cluster" is another project's name, too (`daal.__main__`)
