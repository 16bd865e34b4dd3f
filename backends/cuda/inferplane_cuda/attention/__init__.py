"""attention.paged by the kernels of other packages, where these are installed."""
