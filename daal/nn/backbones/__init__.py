"""A file for each family of backbones; `daal.nn.backbone` says what it has."""
