"""The network of Fig. 2, part by part."""
