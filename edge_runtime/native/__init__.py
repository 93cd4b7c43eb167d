"""The C++ half of a device: kernels, programs and sessions (docs/native.md), as `native._native`.

Import what you need from `edge_runtime.native._native`; `_native.pyi` says what there is. This file
imports nothing, so that a device that never trains natively never loads the libraries.
"""
