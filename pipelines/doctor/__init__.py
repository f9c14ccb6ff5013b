"""What works on this machine and what it would take: `daal doctor`."""
