"""All that runs on Ray: data streams, training jobs, Algorithm 1's stages, the command."""

DISTRIBUTION = "daal-reid"  # "pipelines" is another project's name, too (`daal.__main__`)
