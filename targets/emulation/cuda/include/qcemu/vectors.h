// CUDA's vector types, with the sizes and alignments of the CUDA C++ Programming Guide.
#pragma once

#define QCEMU_VECTORS(NAME, T, ALIGN2, ALIGN4)                                                   \
  struct NAME##1 { T x; };                                                                       \
  struct alignas(ALIGN2) NAME##2 { T x, y; };                                                    \
  struct NAME##3 { T x, y, z; };                                                                 \
  struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                              \
  static inline NAME##1 make_##NAME##1(T x) { return {x}; }                                      \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                              \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                      \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

QCEMU_VECTORS(char, signed char, 2, 4)
QCEMU_VECTORS(uchar, unsigned char, 2, 4)
QCEMU_VECTORS(short, short, 4, 8)
QCEMU_VECTORS(ushort, unsigned short, 4, 8)
QCEMU_VECTORS(int, int, 8, 16)
QCEMU_VECTORS(uint, unsigned int, 8, 16)
QCEMU_VECTORS(long, long, 16, 16)
QCEMU_VECTORS(ulong, unsigned long, 16, 16)
QCEMU_VECTORS(longlong, long long, 16, 16)
QCEMU_VECTORS(ulonglong, unsigned long long, 16, 16)
QCEMU_VECTORS(float, float, 8, 16)
QCEMU_VECTORS(double, double, 16, 16)
#undef QCEMU_VECTORS
