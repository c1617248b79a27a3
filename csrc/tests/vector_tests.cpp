// Native tests of what the CPU kernels compute with: vectors, exponentials, and 16 bits read and
// written. Compiled once per instruction set, like the kernels; AUTODECO_ISA names it.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "distribution_stats_impl.h"
#include "expect.h"
#include "native_isa.h"

namespace {

using namespace autodeco;
using namespace autodeco::cpu::AUTODECO_ISA;
using autodeco::tests::expect;
using autodeco::tests::failures;

double exp2_error_in_ulp(float x, float got) {
  const double exact = std::exp2(static_cast<double>(x));
  const float rounded = static_cast<float>(exact);
  return std::abs(got - exact) / (std::nextafter(rounded, std::numeric_limits<float>::infinity()) -
                                  static_cast<double>(rounded));
}

void exp2_is_as_accurate_as_it_says() {
  double worst = 0.0;
  double worst_product = 0.0;
  double worst_rough = 0.0;
  constexpr int kPoints = 1 << 21;
  for (int i = 0; i <= kPoints; i += kLanes) {
    Floats x;
    for (int lane = 0; lane < kLanes; ++lane) {
      x[lane] = 10.0f - 136.0f * std::min(static_cast<float>(i + lane) / kPoints, 1.0f);
    }
    const Floats powers = exp2_nonpositive(x);
    const Floats rough = exp2_roughly(x);
    // A power of two, so that the product is exact without FMA too.
    const Floats products = exp2_of_product(x * 4.0f, 0.25f);
    for (int lane = 0; lane < kLanes; ++lane) {
      worst = std::max(worst, exp2_error_in_ulp(x[lane], powers[lane]));
      worst_product = std::max(worst_product, exp2_error_in_ulp(x[lane], products[lane]));
      const double exact = std::exp2(static_cast<double>(x[lane]));
      worst_rough = std::max(worst_rough, std::abs(rough[lane] / exact - 1.0));
    }
  }
  // Floats near 0, a thousandth apart, where weights of ties come from.
  for (float x = -0x1p-20f; x < 0.0f; x = std::nextafter(x, 1.0f) * 0.999f) {
    worst = std::max(worst, exp2_error_in_ulp(x, exp2_nonpositive(splat(x))[0]));
    worst_product =
        std::max(worst_product, exp2_error_in_ulp(x, exp2_of_product(splat(x), 1.0f)[0]));
  }
  expect(worst_product <= 1.75, "exp2 of a product within 1.75 ulp");
  expect(worst <= 1.25, "exp2 within 1.25 ulp");
  expect(worst_rough < 1e-4, "the rough one within 1e-4");
  std::printf("exp2: %.3f ulp; of a product: %.3f ulp; roughly: %.2g\n", worst, worst_product,
              worst_rough);
}

void exp2_is_right_at_its_ends() {
  const float smallest = std::numeric_limits<float>::min();
  for (const float x : {-126.0f, std::nextafter(-126.0f, -200.0f), -127.0f, -140.5f, -1e10f,
                        -kLargestFloat, -kInfinity}) {
    const float power = exp2_nonpositive(splat(x))[0];
    expect(power >= 0.0f && power <= smallest, "2^x is at most 2^-126 from there on");
    expect(exp2_in_range(larger(splat(-126.0f), splat(x)))[0] == smallest, "2^-126 is exact");
  }
  expect(exp2_nonpositive(splat(0.0f))[0] == 1.0f, "2^0 is 1");
  expect(exp2_nonpositive(splat(-0.0f))[0] == 1.0f, "2^-0 is 1");
  for (const uint32_t bits : {0x7fc00000u, 0x7fc00001u, 0x7f800001u, 0xffffffffu, 0xffc00155u}) {
    const float result = exp2_nonpositive(splat(std::bit_cast<float>(bits)))[kLanes - 1];
    expect(result != result, "2^NaN is NaN, whatever its payload");
  }
  for (const float factor : {1.0f, 0.7213475f, 14.4269504f, 1e30f}) {
    expect(exp2_of_product(splat(kNoWeightExponent / factor), factor)[0] == 0.0f, "no weight is 0");
    expect(exp2_of_product(splat(-0.0f), factor)[0] == 1.0f, "the weight at the maximum is 1");
    expect(std::isnan(exp2_of_product(splat(kNaN), factor)[0]), "the weight of NaN is NaN");
  }
  for (int exponent = -126; exponent <= 0; ++exponent) {
    const float x = static_cast<float>(exponent);
    expect(exp2_nonpositive(splat(x))[0] == std::ldexp(1.0f, exponent), "powers of two are exact");
    expect(exp2_of_product(splat(x), 1.0f)[0] == std::ldexp(1.0f, exponent), "of a product too");
  }
}

void share_of_epsilon_is_as_accurate_as_it_says() {
  const ShareOfEpsilon share_of_epsilon;
  double worst = 0.0;
  for (float t = -100.0f; t < 40.0f; t += 1e-3f) {
    const double u = std::exp2(static_cast<double>(t));
    const double error = share_of_epsilon(splat(t))[kLanes - 1] - u * std::log1p(1.0 / u);
    worst = std::max(worst, std::abs(error));
  }
  expect(worst < 2e-4, "u ln(1 + 1 / u) within 2e-4");
  std::printf("u ln(1 + 1 / u): %.2g\n", worst);
}

// Every kind of block that has 16-bit elements, among them only negative ones, masks and zeros.
template <typename Element>
void largest_of_16_bits_is_that_of_floats() {
  std::mt19937_64 random(4);
  for (int trial = 0; trial < 4000; ++trial) {
    std::vector<Element> elements(static_cast<size_t>(kStep * (1 + trial % (kBlock / kStep))));
    const uint16_t mask = static_cast<uint16_t>(trial % 2 == 0 ? random() : 0xffffu);
    const uint16_t sign = trial % 3 == 0 ? 0x8000u : 0;
    float largest = -kInfinity;
    for (Element& element : elements) {
      element.bits = static_cast<uint16_t>(random() & mask) | sign;
      if (to_float(element) != to_float(element)) element = minus_infinity<Element>();
      largest = std::max(largest, to_float(element));
    }
    const int size = static_cast<int>(elements.size());
    expect(block_max(Block<Element>{elements.data(), 0, size, size}) == largest,
           "largest of 16-bit elements");
  }
}

// A format of 16 bits, from its definition and by way of double.
struct Format {
  const char* name;
  int mantissa_bits;
  int bias;

  // The pattern, without a bit in the mantissa; what is above it, but for the sign, is NaN.
  int infinity() const { return 0x7fff >> mantissa_bits << mantissa_bits; }

  // Of a pattern without sign; of infinity what follows the largest finite number.
  double magnitude(int pattern) const {
    const int mantissa = pattern & ((1 << mantissa_bits) - 1);
    const int exponent = pattern >> mantissa_bits;
    const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
    return std::ldexp(implicit + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
  }

  float decoded(int bits) const {
    const int pattern = bits & 0x7fff;
    if (pattern > infinity()) return kNaN;
    const float value = pattern == infinity() ? kInfinity : static_cast<float>(magnitude(pattern));
    return bits >> 15 != 0 ? -value : value;
  }
};

constexpr Format kBFloat16 = {"bfloat16", 7, 127};
constexpr Format kFloat16 = {"float16", 10, 15};

bool same_float(float a, float b) {
  return (a != a && b != b) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// On the heap and exactly as long as a vector.
template <typename Element>
std::vector<Element> stored(Floats values) {
  std::vector<Element> elements(kLanes);
  store(elements.data(), values);
  return elements;
}

template <typename Element>
void every_pattern_is_read_and_written(const Format& format) {
  for (int begin = 0; begin < 65536; begin += kLanes) {
    std::vector<Element> elements(kLanes);
    for (int lane = 0; lane < kLanes; ++lane) {
      elements[lane].bits = static_cast<uint16_t>(begin + lane);
    }
    const Floats values = load(elements.data());
    const std::vector<Element> written = stored<Element>(values);
    for (int lane = 0; lane < kLanes; ++lane) {
      const float expected = format.decoded(begin + lane);
      expect(same_float(values[lane], expected), format.name);
      expect(same_float(to_float(elements[lane]), expected), format.name);
      const int bits = written[lane].bits;
      expect(std::isnan(expected) ? std::isnan(format.decoded(bits)) : bits == begin + lane,
             "what 16 bits hold is written as it was read");
    }
  }
}

// Between all neighbours, the largest finite number and infinity among them.
template <typename Element>
void floats_are_rounded_to_nearest_even(const Format& format) {
  for (int begin = 0; begin < format.infinity(); begin += kLanes) {
    for (const int sign : {0, 0x8000}) {
      Floats below = {};
      Floats halfway = {};
      Floats above = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        const int pattern = begin + lane;
        const double sum = format.magnitude(pattern) + format.magnitude(pattern + 1);
        const float middle = static_cast<float>(0.5 * sum);  // exact
        const float factor = sign == 0 ? 1.0f : -1.0f;
        below[lane] = factor * std::nextafter(middle, 0.0f);
        halfway[lane] = factor * middle;
        above[lane] = factor * std::nextafter(middle, kInfinity);
      }
      const std::vector<Element> of_below = stored<Element>(below);
      const std::vector<Element> of_halfway = stored<Element>(halfway);
      const std::vector<Element> of_above = stored<Element>(above);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int pattern = begin + lane;
        expect(of_below[lane].bits == (sign | pattern), "less than half a step is dropped");
        expect(of_halfway[lane].bits == (sign | (pattern + pattern % 2)), "half is made even");
        expect(of_above[lane].bits == (sign | (pattern + 1)), "more than half is rounded up");
      }
    }
  }
}

template <typename Element>
void what_16_bits_cannot_hold_is_infinite_or_nan(const Format& format) {
  const int infinity = format.infinity();
  for (const float beyond : {kLargestFloat, kInfinity}) {
    expect(stored<Element>(splat(beyond))[0].bits == infinity, "beyond the largest number");
    expect(stored<Element>(splat(-beyond))[0].bits == (0x8000 | infinity), "below the least one");
  }
  for (const uint32_t sign : {0u, 0x80000000u}) {
    for (int bit = 0; bit < 23; ++bit) {
      for (const uint32_t payload : {1u << bit, (2u << bit) - 1u}) {
        // As integers: arithmetic would make the NaN a quiet one first.
        const UnsignedInts bits = UnsignedInts{} + (sign | 0x7f800000u | payload);
        const std::vector<Element> written = stored<Element>(reinterpret_cast<Floats>(bits));
        expect(std::isnan(format.decoded(written[kLanes - 1].bits)),
               "NaN is written as NaN, whatever its payload");
      }
    }
  }
}

template <typename Element>
void sixteen_bits_are_read_and_written(const Format& format) {
  every_pattern_is_read_and_written<Element>(format);
  floats_are_rounded_to_nearest_even<Element>(format);
  what_16_bits_cannot_hold_is_infinite_or_nan<Element>(format);
}

void lanes_are_all_reduced() {
  for (int lane = 0; lane < kLanes; ++lane) {
    Floats values = splat(-3.0f);
    values[lane] = 5.0f;
    expect(largest_lane(values) == 5.0f, "largest lane");
    expect(bits_of(greater(values, splat(0.0f))) == 1u << lane, "one bit per lane");
    Floats powers = {};
    powers[lane] = static_cast<float>(1 << lane);
    expect(sum_of_lanes(powers) == powers[lane], "sum of lanes");
  }
  expect(sum_of_lanes(splat(1.0f)) == static_cast<float>(kLanes), "each lane once");
  Floats nan = splat(1.0f);
  nan[kLanes - 1] = kNaN;
  const float sum = sum_of_lanes(nan);
  expect(sum != sum, "a sum of NaN is NaN");
  const float second = larger(splat(2.0f), splat(kNaN))[0];
  expect(second != second && larger(splat(kNaN), splat(2.0f))[0] == 2.0f,
         "second where one is NaN");
}

}  // namespace

int main() {
  if (!autodeco::tests::processor_has_isa()) return autodeco::tests::kSkipped;
  exp2_is_as_accurate_as_it_says();
  exp2_is_right_at_its_ends();
  share_of_epsilon_is_as_accurate_as_it_says();
  sixteen_bits_are_read_and_written<BFloat16>(kBFloat16);
  sixteen_bits_are_read_and_written<Float16>(kFloat16);
  largest_of_16_bits_is_that_of_floats<BFloat16>();
  largest_of_16_bits_is_that_of_floats<Float16>();
  lanes_are_all_reduced();
  std::printf("%s\n", failures == 0 ? "vector tests: all passed" : "vector tests: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
