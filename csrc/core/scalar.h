// The only scalar calculus of the library: elementary functions and dual numbers.
//
// A dual number v + d e, with e * e = 0, carries a value and its derivative along one direction. Feed x + x' e to any
// formula written for a generic scalar S and it returns f(x) + f'(x) x' e: from 3 + 1e, S * S gives 9 + 6e, the square
// and its slope at 3. A primitive therefore states its formula once, templated on S: S = T yields values and
// gradients, S = Dual<T> their tangents, and first and second derivatives cannot disagree (docs/maths.md, section 3).
//
// Everything here is branch-free so that loops over it vectorise, and compiles for host and device alike.
// Errors, as tests/test_native.py bounds them: 2 units in the last place for exp, expm1, log and log1p01, 2.5 for tanh,
// sigmoid and log1p, 2 for erf, and for sin and cos up to |x| = 10^6; beyond that, what a change of x by 2^-53 of itself
// makes.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define MF_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MF_HD inline __attribute__((always_inline))
#else
#define MF_HD inline
#endif

// Before a loop of a few constant terms, which must be gone before the loop around it can be vectorised.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define METAFAST_UNROLL _Pragma("GCC unroll 32")
#else
#define METAFAST_UNROLL
#endif

#include "core/isa.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  // 1.5 * 2^mantissa: adding and subtracting it rounds to the nearest integer, which then stands in the low bits.
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLog2Hi = 0.693359375f, kLog2Lo = -2.12194440e-4f;
  static constexpr float kLowest = -104.0f, kHighest = 89.0f;  // exp is 0 below, infinite above
  static constexpr int kExpDegree = 7, kLogTerms = 9, kShortLogTerms = 5, kSineTerms = 5;
  static constexpr float kSmallest = 1.17549435e-38f, kInfinity = __builtin_inff(), kNan = __builtin_nanf("");
};
template <>
struct Bits<double> {
  using Int = int64_t;
  using Unsigned = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLog2Hi = 6.93147180369123816490e-01, kLog2Lo = 1.90821492927058770002e-10;
  static constexpr double kLowest = -746.0, kHighest = 710.0;
  static constexpr int kExpDegree = 13, kLogTerms = 18, kShortLogTerms = 10, kSineTerms = 9;
  static constexpr double kSmallest = 2.2250738585072014e-308, kInfinity = __builtin_inf(), kNan = __builtin_nan("");
};

// x = k log 2 + r with |r| <= log(2) / 2. Gives k, and expm1(r) in p.
template <class T>
struct ExpParts {
  using Int = typename Bits<T>::Int;
  using Unsigned = typename Bits<T>::Unsigned;  // where x is NaN, k is any number: only unsigned arithmetic may wrap
  Int k;
  T p;

  MF_HD static T power_of_two(Int n) {
    return __builtin_bit_cast(T, (Unsigned(n) + Unsigned(Bits<T>::kBias)) << Bits<T>::kMantissa);
  }
  // 2^k as a product of two, since 2^k alone may overflow or be denormal where the product with 1 + p is not.
  MF_HD T scale1() const { return power_of_two(k >> 1); }
  MF_HD T scale2() const { return power_of_two(k - (k >> 1)); }
};

template <class T>
MF_HD ExpParts<T> exp_parts(T x) {
  using B = Bits<T>;
  using Unsigned = typename B::Unsigned;
  const T shifted = x * T(1.44269504088896340736) + B::kRound;
  const T kf = shifted - B::kRound;
  const auto k = typename B::Int(__builtin_bit_cast(Unsigned, shifted) - __builtin_bit_cast(Unsigned, B::kRound));
  const T r = (x - kf * B::kLog2Hi) - kf * B::kLog2Lo;
  T inverse = T(1);
  // Taylor's polynomial (expm1(r) - r) / r^2 by Horner's rule; the coefficients 1/n! are built as constants.
  T coefficient[16];
  METAFAST_UNROLL for (int n = 1; n <= B::kExpDegree; ++n) {
    inverse /= T(n);
    coefficient[n] = inverse;
  }
  T q = coefficient[B::kExpDegree];
  METAFAST_UNROLL for (int n = B::kExpDegree - 1; n >= 2; --n) q = q * r + coefficient[n];
  return {k, r + r * r * q};
}

// NaN fails both comparisons and passes through.
template <class T>
MF_HD T within_exp(T x) {
  x = x < Bits<T>::kLowest ? Bits<T>::kLowest : x;
  return x > Bits<T>::kHighest ? Bits<T>::kHighest : x;
}

template <class T>
MF_HD T exp(T x) {
  const ExpParts<T> e = exp_parts(within_exp(x));
  return (e.scale1() + e.scale1() * e.p) * e.scale2();
}

template <class T>
MF_HD T expm1(T x) {
  const ExpParts<T> e = exp_parts(within_exp(x));
  const T scale = e.scale1() * e.scale2();
  return scale * e.p + (scale - T(1));
}

MF_HD float magnitude(float x) { return __builtin_fabsf(x); }
MF_HD double magnitude(double x) { return __builtin_fabs(x); }
MF_HD float with_sign(float x, float sign) { return __builtin_copysignf(x, sign); }
MF_HD double with_sign(double x, double sign) { return __builtin_copysign(x, sign); }

template <class T>
MF_HD T tanh(T x) {
  T a = magnitude(x);
  a = a > T(20) ? T(20) : a;  // tanh(20) rounds to 1
  const ExpParts<T> e = exp_parts(T(2) * a);
  const T scale = ExpParts<T>::power_of_two(e.k);
  const T m = scale * e.p + (scale - T(1));  // expm1(2 a)
  return with_sign(m / (m + T(2)), x);
}

template <class T>
MF_HD T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// log(1 + u) for 0 <= u <= 1, as 2 artanh(u / (2 + u)).
template <class T>
MF_HD T log1p01(T u) {
  using B = Bits<T>;
  const T s = u / (T(2) + u), s2 = s * s;
  T q = T(0);
  METAFAST_UNROLL for (int n = B::kLogTerms; n >= 1; --n) q = q * s2 + T(1) / T(2 * n + 1);
  return T(2) * (s + s * s2 * q);
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) is f less what 2 artanh(f / (2 + f)) lacks of 2 f.
template <class T>
MF_HD T log_of_normal(T x, T shift) {
  using B = Bits<T>;
  using Int = typename B::Int;
  const Int offset = __builtin_bit_cast(Int, T(0.70710678118654752440));
  const auto bits = typename B::Unsigned(__builtin_bit_cast(Int, x) - offset);
  const Int k = Int(bits) >> B::kMantissa;
  const auto mask = (typename B::Unsigned(1) << B::kMantissa) - 1;
  const T f = __builtin_bit_cast(T, typename B::Unsigned((bits & mask) + typename B::Unsigned(offset))) - T(1);
  const T s = f / (T(2) + f), s2 = s * s, half = T(0.5) * f * f, kf = T(k) + shift;
  T q = T(0);
  METAFAST_UNROLL for (int n = B::kShortLogTerms; n >= 1; --n) q = q * s2 + T(2) / T(2 * n + 1);
  return kf * B::kLog2Hi - ((half - (s * (half + s2 * q) + kf * B::kLog2Lo)) - f);
}

template <class T>
MF_HD T log(T x) {
  using B = Bits<T>;
  const bool small = x<B::kSmallest, ordinary = x> T(0) && x < B::kInfinity;
  const T scale = small ? T(int64_t(1) << B::kMantissa) : T(1);
  const T y = log_of_normal(ordinary ? x * scale : T(1), small ? T(-B::kMantissa) : T(0));
  const T end = x < T(0) ? B::kNan : x == T(0) ? -B::kInfinity : x;  // infinity and NaN as they are
  return ordinary ? y : end;
}

// With what 1 + x loses of x made good.
template <class T>
MF_HD T log1p(T x) {
  const T u = T(1) + x;
  const bool ordinary = u > T(0) && u < Bits<T>::kInfinity;
  const T lost = ordinary ? (u > T(2) ? T(1) - (u - x) : x - (u - T(1))) / u : T(0);
  return u == T(1) ? x : log(u) + lost;
}

// x = n pi / 2 + r with |r| <= pi / 4. pi / 2 is taken in parts of 33 bits, whose products with n are exact below 2^20.
struct Quarters {
  uint32_t n;
  double r;
};
MF_HD Quarters quarters(double x) {
  const double shifted = x * 0.63661977236758134308 + Bits<double>::kRound, n = shifted - Bits<double>::kRound;
  const double a = x - n * 1.57079632673412561417e+00, b = a - n * 6.07710050630396597660e-11;
  const double r = (b - n * 2.02226624871116645580e-21) - n * 8.47842766036889956997e-32;
  const double held = r < -0.8 ? -0.8 : r > 0.8 ? 0.8 : r;  // where x is out of reach
  return {uint32_t(__builtin_bit_cast(uint64_t, shifted)), held};
}

// sin(x + turns pi / 2).
template <class T>
MF_HD T sine(T x, uint32_t turns) {
  const Quarters part = quarters(x);
  const uint32_t n = part.n + turns;
  const T r = T(part.r), z = r * r, half = T(0.5) * z, w = T(1) - half;
  T odd = T(0), even = T(0);
  METAFAST_UNROLL for (int i = Bits<T>::kSineTerms - 1; i >= 1; --i) {  // Taylor's, by Horner's rule
    T factorial = T(1);
    METAFAST_UNROLL for (int j = 2; j <= 2 * i + 1; ++j) factorial *= T(j);
    odd = odd * z + (i % 2 ? T(-1) : T(1)) / factorial;
    even = even * z + (i % 2 ? T(1) : T(-1)) / (factorial * T(2 * i + 2));
  }
  const T sine = r + r * z * odd, cosine = w + (((T(1) - w) - half) + z * z * even);
  const T y = n & 1 ? cosine : sine;
  return n & 2 ? -y : y;
}
template <class T>
MF_HD T sin(T x) {
  return sine(x, 0);
}
template <class T>
MF_HD T cos(T x) {
  return sine(x, 1);
}

// x ** exponent, by multiplications where that is a small whole number.
MF_HD float any_power(float x, float exponent) { return __builtin_powf(x, exponent); }
MF_HD double any_power(double x, double exponent) { return __builtin_pow(x, exponent); }
template <class T>
MF_HD T power(T x, double exponent) {
  const double size = exponent < 0 ? -exponent : exponent;
  const int n = size <= 8 ? int(size) : 0;
  if (size != n) return any_power(x, T(exponent));
  T y = T(1);
  for (int i = 0; i < n; ++i) y *= x;
  return exponent < 0 ? T(1) / y : y;
}

// Up to 1, erf(x) / x - 1 is a polynomial in x^2; above it -log(erfc(x)) / x is one in x. Both have the least error.
MF_HD float erf(float x) {
  const float near[] = {1.28379167e-1f, -3.76126258e-1f, 1.12835851e-1f, -2.68538119e-2f,
                        5.18832756e-3f, -8.01019252e-4f, 7.85385771e-5f};
  const float far[] = {1.12869434f,    6.34969531e-1f,  1.06530866e-1f, -2.40100689e-2f,
                       3.75747692e-3f, -3.50592050e-4f, 1.39624444e-5f};
  const float a = magnitude(x), t = a > 4 ? 4.0f : a, s = x * x;  // erf(4) rounds to 1
  float p = near[6], q = far[6];
  METAFAST_UNROLL for (int i = 5; i >= 0; --i) {
    p = p * s + near[i];
    q = q * t + far[i];
  }
  return a > 1 ? with_sign(1 - exp(-t * q), x) : x + x * p;
}
MF_HD double erf(double x) { return __builtin_erf(x); }
MF_HD float sqrt(float x) { return __builtin_sqrtf(x); }
MF_HD double sqrt(double x) { return __builtin_sqrt(x); }

template <class T>
struct Dual {
  T v, d;
  MF_HD Dual() : v(0), d(0) {}
  MF_HD Dual(T value) : v(value), d(0) {}  // a constant
  MF_HD Dual(T value, T derivative) : v(value), d(derivative) {}
  MF_HD Dual& operator+=(Dual b) { return *this = *this + b; }

  friend MF_HD Dual operator-(Dual a) { return {-a.v, -a.d}; }
  friend MF_HD Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
  friend MF_HD Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }
  friend MF_HD Dual operator*(Dual a, Dual b) { return {a.v * b.v, a.d * b.v + a.v * b.d}; }
  friend MF_HD Dual operator/(Dual a, Dual b) {
    const T q = a.v / b.v;
    return {q, (a.d - q * b.d) / b.v};
  }
  friend MF_HD bool operator<(Dual a, Dual b) { return a.v < b.v; }
  friend MF_HD bool operator>(Dual a, Dual b) { return a.v > b.v; }
};

template <class T>
MF_HD Dual<T> exp(Dual<T> a) {
  const T y = exp(a.v);
  return {y, y * a.d};
}
template <class T>
MF_HD Dual<T> log(Dual<T> a) {
  return {log(a.v), a.d / a.v};
}
template <class T>
MF_HD Dual<T> sin(Dual<T> a) {
  return {sin(a.v), cos(a.v) * a.d};
}
template <class T>
MF_HD Dual<T> cos(Dual<T> a) {
  return {cos(a.v), -sin(a.v) * a.d};
}
template <class T>
MF_HD Dual<T> power(Dual<T> a, double exponent) {
  return {power(a.v, exponent), exponent == 0 ? T(0) : T(exponent) * power(a.v, exponent - 1) * a.d};
}
template <class T>
MF_HD Dual<T> tanh(Dual<T> a) {
  const T y = tanh(a.v);
  return {y, (T(1) - y * y) * a.d};
}
template <class T>
MF_HD Dual<T> sigmoid(Dual<T> a) {
  const T y = sigmoid(a.v);
  return {y, y * (T(1) - y) * a.d};
}
template <class T>
MF_HD Dual<T> erf(Dual<T> a) {
  return {erf(a.v), T(1.12837916709551257390) * exp(-a.v * a.v) * a.d};
}
template <class T>
MF_HD Dual<T> sqrt(Dual<T> a) {
  const T y = sqrt(a.v);
  return {y, a.d / (T(2) * y)};
}
template <class T>
MF_HD Dual<T> magnitude(Dual<T> a) {
  return a.v < T(0) ? -a : a;
}

// condition ? a : b, with no preference for the type of the constants.
template <class S>
MF_HD S select(bool condition, S a, S b) {
  return condition ? a : b;
}

template <class T>
MF_HD T value_of(T a) {
  return a;
}
template <class T>
MF_HD T value_of(Dual<T> a) {
  return a.v;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
