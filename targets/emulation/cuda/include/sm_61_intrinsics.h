// A CUDA header that emulated programs include; what they use of it is in qcemu/kernel.h.
