"""The verbs of the command `daal`: arguments in, a call, what is printed of it."""
