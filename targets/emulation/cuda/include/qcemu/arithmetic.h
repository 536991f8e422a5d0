// CUDA's arithmetic functions that a C library has not, or not with the same result.
//
// Everything here is exact: IEEE 754 operations as the CUDA Math API and the PTX ISA define them.
// expf, tanhf, erff, rsqrtf and their like come from the host's C library, and are within some ulps
// of a GPU's. Approximate functions (__expf, __fdividef) are left out: they would hide a difference.
#pragma once
#include <math.h>
#include <string.h>

#include "vectors.h"

template <class To, class From>
static inline To qcemu_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another width");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

static inline int __float_as_int(float x) { return qcemu_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return qcemu_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return qcemu_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return qcemu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return qcemu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return qcemu_bits<double>(x); }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

static inline float rsqrtf(float a) { return (float)(1.0 / __builtin_sqrt((double)a)); }
static inline double rsqrt(double a) { return 1.0 / __builtin_sqrt(a); }

// PTX ISA, min and max: a NaN loses to a number, and -0 is less than +0.
template <class T>
static inline T qcemu_max(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T>
static inline T qcemu_min(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return signbit(a) ? a : b;
  return a < b ? a : b;
}
#define fmaxf(a, b) qcemu_max<float>(a, b)
#define fminf(a, b) qcemu_min<float>(a, b)

static inline float max(float a, float b) { return qcemu_max(a, b); }
static inline float min(float a, float b) { return qcemu_min(a, b); }
static inline double max(double a, double b) { return qcemu_max(a, b); }
static inline double min(double a, double b) { return qcemu_min(a, b); }
static inline double max(float a, double b) { return qcemu_max<double>(a, b); }
static inline double max(double a, float b) { return qcemu_max<double>(a, b); }
static inline double min(float a, double b) { return qcemu_min<double>(a, b); }
static inline double min(double a, float b) { return qcemu_min<double>(a, b); }
#define QCEMU_EXTREMES(T)                                   \
  static inline T max(T a, T b) { return a > b ? a : b; }   \
  static inline T min(T a, T b) { return a < b ? a : b; }
QCEMU_EXTREMES(int)
QCEMU_EXTREMES(unsigned)
QCEMU_EXTREMES(long)
QCEMU_EXTREMES(unsigned long)
QCEMU_EXTREMES(long long)
QCEMU_EXTREMES(unsigned long long)
#undef QCEMU_EXTREMES
// As in CUDA, of a signed and an unsigned number both are taken as unsigned.
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }

// Conversions to integers saturate, and NaN becomes 0. (PTX ISA, cvt.) The plain cast `(int)x` is
// the host's instead: what is out of range there is undefined in C++, and differs from a GPU.
template <class T>
static inline T qcemu_saturate(double x, double low, double high) {
  if (x != x) return 0;
  return x < low ? (T)low : x > high ? (T)high : (T)x;
}
static inline int __float2int_rn(float x) { return qcemu_saturate<int>(rint((double)x), -2147483648.0, 2147483647.0); }
static inline int __float2int_rz(float x) { return qcemu_saturate<int>(trunc((double)x), -2147483648.0, 2147483647.0); }
static inline int __float2int_rd(float x) { return qcemu_saturate<int>(floor((double)x), -2147483648.0, 2147483647.0); }
static inline int __float2int_ru(float x) { return qcemu_saturate<int>(ceil((double)x), -2147483648.0, 2147483647.0); }
static inline unsigned __float2uint_rn(float x) { return qcemu_saturate<unsigned>(rint((double)x), 0.0, 4294967295.0); }
static inline unsigned __float2uint_rz(float x) { return qcemu_saturate<unsigned>(trunc((double)x), 0.0, 4294967295.0); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline double __int2double_rn(int x) { return x; }

static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

static inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

// Byte i of the result is byte (s >> 4 * i) & 7 of y:x; its sign, eight times, where bit 3 is set.
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = s >> 4 * i & 15;
    unsigned byte = (unsigned)(bytes >> 8 * (selector & 7)) & 255;
    if (selector & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// dp4a: four products of bytes, added to c with wrap-around. (PTX ISA, dp4a.) CUDA has no forms of
// mixed signs; TVM writes them itself where it uses them.
template <class A, class B>
static inline unsigned qcemu_dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (unsigned)((int)(A)(a >> i) * (int)(B)(b >> i));
  return c;
}
static inline int __dp4a(int a, int b, int c) { return (int)qcemu_dp4a<signed char, signed char>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return qcemu_dp4a<unsigned char, unsigned char>(a, b, c); }
static inline int __dp4a(char4 a, char4 b, int c) { return __dp4a(qcemu_bits<int>(a), qcemu_bits<int>(b), c); }
static inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) { return __dp4a(qcemu_bits<unsigned>(a), qcemu_bits<unsigned>(b), c); }
