"""The raw Triton kernels, one to a file; what calls them is a level up.

These files import ``triton`` at the top, so nothing may import them at the top of a file: the CUDA
rule of a kernel does, inside. `precir.kernels.launch` says how they are called.
"""
