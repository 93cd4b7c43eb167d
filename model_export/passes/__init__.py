"""Graph passes: `stock` for ExecuTorch's own kernels; the rest for the native device runtime.

For the native runtime, in this order: `tidy`, `lower`, `fuse`, `schedule`.
"""
