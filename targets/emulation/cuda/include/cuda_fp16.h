// float16 as emulated programs include it: storage, conversions and the four operations.
//
// An operation in float32 rounded to float16 is the correctly rounded one: 24 bits are at least
// twice 11 and two more. hexp and its like are the host's float32 functions, rounded.
#pragma once
#include "qcemu/arithmetic.h"

struct __half {
  unsigned short bits;

  __half() = default;
  __half(float value) : bits(rounded(value)) {}
  __half(double value) : bits(rounded((float)value)) {}
  __half(int value) : bits(rounded((float)value)) {}
  operator float() const {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 0) {
      const float value = (float)fraction * 0x1p-24f;
      return sign ? -value : value;
    }
    return qcemu_bits<float>(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
  }

 private:
  // To nearest, ties to even.
  static unsigned short rounded(float value) {
    const unsigned word = qcemu_bits<unsigned>(value), sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
    if (magnitude < 0x38800000u)  // below the smallest normal number: a multiple of 2^-24
      return (unsigned short)(sign | (unsigned)rintf(qcemu_bits<float>(magnitude) * 0x1p24f));
    const unsigned rest = magnitude & 0x1fffu, half = magnitude >> 13;
    const unsigned up = rest > 0x1000u || (rest == 0x1000u && (half & 1));
    return (unsigned short)(sign | (half + up - (112u << 10)));
  }
};
typedef __half half;
struct alignas(4) __half2 {
  half x, y;
};
typedef __half2 half2;

static inline half operator+(half a, half b) { return half((float)a + (float)b); }
static inline half operator-(half a, half b) { return half((float)a - (float)b); }
static inline half operator*(half a, half b) { return half((float)a * (float)b); }
static inline half operator/(half a, half b) { return half((float)a / (float)b); }
static inline half operator-(half a) { return half(-(float)a); }
static inline bool operator<(half a, half b) { return (float)a < (float)b; }
static inline bool operator>(half a, half b) { return (float)a > (float)b; }
static inline bool operator<=(half a, half b) { return (float)a <= (float)b; }
static inline bool operator>=(half a, half b) { return (float)a >= (float)b; }
static inline bool operator==(half a, half b) { return (float)a == (float)b; }
static inline bool operator!=(half a, half b) { return (float)a != (float)b; }
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline half __hadd(half a, half b) { return a + b; }
static inline half __hmul(half a, half b) { return a * b; }

static inline float __half2float(half a) { return a; }
static inline half __float2half(float a) { return half(a); }
static inline half __float2half_rn(float a) { return half(a); }
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }

#define QCEMU_HALF(NAME, FUNCTION) \
  static inline half NAME(half a) { return half(FUNCTION((float)a)); }
QCEMU_HALF(hexp, expf)
QCEMU_HALF(hlog, logf)
QCEMU_HALF(hsqrt, sqrtf)
QCEMU_HALF(hrint, rintf)
QCEMU_HALF(htanh, tanhf)
QCEMU_HALF(hfloor, floorf)
QCEMU_HALF(hceil, ceilf)
#undef QCEMU_HALF
