"""Everything that runs on Ray: data streams, training jobs, the stages of Algorithm 1, the command."""
