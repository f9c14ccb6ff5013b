"""Images of a gallery that are most like one image, in this process, without Ray."""
