// Logits whose loads are counted, and rows to count them with. Include it before the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "row.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// A logit whose loads are counted.
struct Counted {
  float value;
};

// Elements read, each at most once per visit of its block: the second read of a block in the
// first-level cache costs no memory traffic. Loops that look at the next block too visit three at a
// time, because a row need not begin where a block of memory does.
struct Reads {
  struct Visit {
    uintptr_t block = 0;
    int64_t loaded = 0;
  };
  Visit visits[3];  // the latest first
  int64_t elements = 0;

  void load(const Counted* source) {
    const uintptr_t block = reinterpret_cast<uintptr_t>(source) / (kBlock * sizeof(Counted));
    int place = 0;
    while (place < 2 && visits[place].block != block) ++place;
    std::rotate(visits, visits + place, visits + place + 1);
    if (visits[0].block != block) {
      end(visits[0]);
      visits[0].block = block;
    }
    visits[0].loaded += kLanes;
  }
  void end_visits() {
    for (Visit& visit : visits) end(visit);
  }

 private:
  void end(Visit& visit) {
    elements += std::min<int64_t>(visit.loaded, kBlock);
    visit.loaded = 0;
  }
} reads;

float to_float(Counted element) { return element.value; }

template <>
Counted minus_infinity<Counted>() {
  return {-kInfinity};
}

Floats load(const Counted* source) {
  reads.load(source);
  return load(&source->value);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA

namespace autodeco::tests {

using namespace autodeco::cpu::AUTODECO_ISA;

constexpr int kVocab = 151936;
using Logits = std::vector<float>;
inline std::mt19937_64 random_bits(5);

inline float normal() { return std::normal_distribution<float>()(random_bits); }
inline float uniform() { return std::uniform_real_distribution<float>()(random_bits); }

// Places of a sample that is the same in every row; the sampler's differ (cpu_read_tests.cpp).
inline bool is_sampled(int column) {
  return column % kBlock / 16 == column / kBlock * 7 % (kBlock / 16);
}

inline Logits make(const std::function<float(int)>& logit) {
  Logits row(kVocab);
  for (int column = 0; column < kVocab; ++column) row[column] = logit(column);
  return row;
}

inline Logits sorted(Logits row, bool ascending) {
  std::sort(row.begin(), row.end());
  if (!ascending) std::reverse(row.begin(), row.end());
  return row;
}

struct Kind {
  const char* name;
  Logits row;
};

inline std::vector<Kind> benign_rows() {
  return {
      {"peaked", make([](int) { return 10 - 1.5f * std::log(1 + kVocab * uniform()); })},
      {"gaussian, sigma 1", make([](int) { return normal(); })},
      {"gaussian, sigma 5", make([](int) { return 5 * normal(); })},
      {"uniform logits", make([](int) { return uniform(); })},
      {"all equal", make([](int) { return 1.0f; })},
      {"rounded to 1/8", make([](int) { return std::round(24 * normal()) / 8; })},
      {"ascending", sorted(make([](int) { return 3 * normal(); }), true)},
      {"descending", sorted(make([](int) { return 3 * normal(); }), false)},
  };
}

inline std::vector<Kind> adversarial_rows() {
  Logits period(kBlock);
  for (float& logit : period) logit = normal();
  return {
      {"mass in one block",
       make([](int column) { return column / kBlock == 77 ? normal() : -30 + normal(); })},
      {"period 512", make([&](int column) { return period[column % kBlock]; })},
      {"period 16", make([&](int column) { return period[column % 16]; })},
      {"mass not sampled", make([](int column) { return is_sampled(column) ? -9.0f : normal(); })},
      {"only mass sampled", make([](int column) { return is_sampled(column) ? normal() : -9.0f; })},
      {"sample sees none", make([](int column) { return is_sampled(column) ? -1e30f : normal(); })},
      {"sample sees none, one float apart", make([](int column) {
         if (column == 0) return 4.0f;
         return is_sampled(column) ? -1e30f : 1 + std::floor(uniform() * 40) * 0x1p-23f;
       })},
      {"sample spread, rest close", make([](int column) {
         return is_sampled(column) ? -8 * uniform() : -3 - 1e-4f * uniform();
       })},
      {"sample spread, rest tied",
       make([](int column) { return is_sampled(column) ? -8 * uniform() : -3.0f; })},
      {"one float apart", make([](int) { return 1 + std::floor(uniform() * 4096) * 0x1p-23f; })},
      {"powers of two apart",
       make([](int) { return 1 + std::exp2(-1 - std::floor(uniform() * 23)); })},
      {"whole range", make([](int) { return 3e38f * (2 * uniform() - 1); })},
      {"half excluded", make([](int) { return uniform() < 0.5f ? -kInfinity : normal(); })},
      {"k-th block maximum poor",
       make([](int column) { return column < 8 * kBlock ? 20 + normal() : 1e-3f * normal(); })},
  };
}

// How often `read(Row<Counted>)` reads the row.
template <typename Read>
double count_reads(const Logits& logits, Read&& read) {
  static const auto data = std::make_unique<Counted[]>(kVocab + 2 * kBlock);
  const uintptr_t address = reinterpret_cast<uintptr_t>(data.get());
  constexpr uintptr_t kBlockBytes = kBlock * sizeof(Counted);
  Counted* row = data.get() + (kBlockBytes - address % kBlockBytes) / sizeof(Counted);
  for (int column = 0; column < kVocab; ++column) row[column] = {logits[column]};
  reads = {};
  read(Row<Counted>(row, kVocab));
  reads.end_visits();
  return static_cast<double>(reads.elements) / kVocab;
}

}  // namespace autodeco::tests
