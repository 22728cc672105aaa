"""CUDA C++ kernels, their build and their binding; `vtc.ops.cuda` chooses them. Installed as `vtc.cuda`.

The folder above is no package: `cuda` is the name of NVIDIA's.
"""
