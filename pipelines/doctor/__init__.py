"""The command `daal doctor`: what works on this machine, and what is missing."""
