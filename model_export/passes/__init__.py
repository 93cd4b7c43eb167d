"""Graph passes: `stock` for ExecuTorch's own kernels; the rest for the native device runtime.

For the native runtime (`trace.native_graph`): `tidy`, `lower`, `tidy`, `fuse` over whole layers;
the same again after what no rule took was decomposed; then `separate` and `schedule`.
"""
