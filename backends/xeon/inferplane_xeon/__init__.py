"""inferplane on x86 processors: C++ kernels and the backend's plugin."""
