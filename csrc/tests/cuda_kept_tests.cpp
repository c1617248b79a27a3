// kept_indices on the emulated device, against a float64 sort.
#include <cstdlib>

#include "emulated_kept.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

// The ids of a row are the columns of a right kept set, ascending.
void judge_row(const std::vector<float>& logits, const Filters& filters, const int32_t* begin,
               const int32_t* end, const std::string& what) {
  const Oracle oracle(logits, filters.temperature == 0.0f ? 1.0f : filters.temperature);
  const int64_t kept = end - begin;
  expect(oracle.length_is_right(filters, kept), "kept " + std::to_string(kept) + ": " + what);
  std::vector<int32_t> wanted(oracle.order.begin(), oracle.order.begin() + kept);
  std::sort(wanted.begin(), wanted.end());
  expect(std::equal(begin, end, wanted.begin()), "columns: " + what);
}

template <typename Element>
void kernels_agree_with_a_sort(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  const float temperatures[] = {1.0f, 0.1f, 0.7f, 2.0f, 0.0f};
  const float top_ps[] = {0.9f, 0.5f, 1.0f, 0.999999f, 0.0f};
  const Order orders[] = {Order::kForward, Order::kReverse, Order::kRandom};
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % (trial % 5 == 0 ? 9000 : 2600));
    std::vector<std::vector<float>> rows;
    for (int row = 0; row < 3; ++row) {
      const RowKind kind = static_cast<RowKind>(random() % static_cast<int>(RowKind::kHuge));
      rows.push_back(make_row(kind, vocab, random));
    }
    const Batch<Element> batch(rows, static_cast<int>(random() % 4));
    Filters filters;
    filters.temperature = temperatures[random() % 5];
    filters.top_p = top_ps[random() % 5];
    if (trial % 3 == 0) filters.top_k = 1 + static_cast<int64_t>(random() % (vocab + 3));
    if (trial % 4 == 0) filters.min_p = 0.01f;
    emulation::device.order = orders[random() % 3];
    const Shape shape = random_shape(random);
    const std::string what = "T " + std::to_string(filters.temperature) + ", P " +
                             std::to_string(filters.top_p) + ", k " +
                             std::to_string(filters.top_k) + ", vocab " + std::to_string(vocab);
    const KeptResult result = kept_indices(batch, filters, shape, vocab);
    for (size_t row = 0; row < rows.size(); ++row) {
      expect(result.status[row] == RowStatus::kValid, "status: " + what);
      judge_row(batch.rows[row], filters, result.ids.data() + result.offsets[row],
                result.ids.data() + result.offsets[row + 1], what);
    }
    for (const Shape other : kShapes) {
      const KeptResult again = kept_indices(batch, filters, other, vocab);
      expect(again.offsets == result.offsets && again.ids == result.ids,
             "same in another launch shape: " + what);
    }
  }
}

// The buffers are exact, so that a write past the end is an error of AddressSanitizer.
void nothing_is_written_past_the_capacity() {
  std::mt19937_64 random(5);
  const Batch<cuda::BFloat16> batch(
      {make_row(RowKind::kRounded, 3000, random), make_row(RowKind::kGaussian, 3000, random),
       make_row(RowKind::kTwoValues, 3000, random)},
      1);
  const Filters filters = {1.0f, 0.8f, 0, 0.0f};
  const KeptResult whole = kept_indices(batch, filters, 1, 3000);
  const int64_t total = whole.offsets.back();
  for (const Shape shape : kShapes) {
    for (const int64_t capacity : {int64_t{0}, int64_t{1}, whole.offsets[1] - 1, whole.offsets[1],
                                   whole.offsets[2] + 5, total - 1, total, total + 40}) {
      const KeptResult result = kept_indices(batch, filters, shape, 3000, capacity);
      expect(result.offsets == whole.offsets, "offsets do not depend on the capacity");
      for (int64_t i = 0; i < capacity; ++i) {
        const int32_t wanted = i < total ? whole.ids[static_cast<size_t>(i)] : -1;
        expect(result.ids[static_cast<size_t>(i)] == wanted, "ids up to the capacity");
      }
    }
  }
}

void invalid_rows_have_no_ids() {
  std::vector<float> row(3000, 0.5f);
  std::vector<float> bad = row;
  bad[2500] = std::numeric_limits<float>::quiet_NaN();
  const Batch<float> batch({row, bad, row}, 0);
  for (const Shape shape : {Shape(1), Shape(2), Shape(8), portable(8)}) {
    const KeptResult result = kept_indices(batch, {}, shape, 3000);
    expect(result.offsets == std::vector<int64_t>{0, 3000, 3000, 6000}, "no ids in the middle row");
    expect(result.status[1] == RowStatus::kLogitNaN, "status");
    const KeptResult part = kept_indices(batch, {}, shape, 2000);
    expect(part.offsets == std::vector<int64_t>{0, 2000, 4000, 6000}, "valid_vocab");
    Filters negative;
    negative.temperature = -1.0f;
    const KeptResult none = kept_indices(batch, negative, shape, 3000, 10);
    expect(none.offsets.back() == 0 && none.status[0] == RowStatus::kTemperatureInvalid,
           "bad parameters");
    expect(none.ids == std::vector<int32_t>(10, -1), "ids of bad parameters");
  }
}

// More segments than a block marks at once.
void the_widest_row_is_written_in_rounds() {
  constexpr int kVocab = 1 << 20;
  static_assert(kVocab / cuda::kSegment > cuda::kMarkedSegments);
  std::mt19937_64 random(6);
  const Batch<cuda::BFloat16> batch({make_row(RowKind::kGaussian, kVocab, random)}, 0);
  const Filters filters = {1.0f, 0.9f, 0, 0.0f};
  for (const Shape shape : {Shape(1), Shape(2), portable(2)}) {
    const KeptResult whole = kept_indices(batch, filters, shape, kVocab);
    judge_row(batch.rows[0], filters, whole.ids.data(), whole.ids.data() + whole.ids.size(),
              "widest row");
    expect(whole.ids.size() > 1000 && whole.ids.back() > kVocab / 2, "the last round has ids");
    const KeptResult cut = kept_indices(batch, filters, shape, kVocab, 1000);
    expect(cut.ids == std::vector<int32_t>(whole.ids.begin(), whole.ids.begin() + 1000),
           "widest row, cut");
  }
}

void the_second_kernel_reads_a_row_once() {
  std::mt19937_64 random(7);
  for (const RowKind kind : {RowKind::kConfident, RowKind::kUniform, RowKind::kAllEqual}) {
    const Batch<float> batch({make_row(kind, 20000, random)}, 0);
    for (const Shape shape : {Shape(1), Shape(8), portable(8)}) {
      const KeptResult result = kept_indices(batch, {1.0f, 0.9f, 0, 0.0f}, shape, 20000);
      expect(result.bytes_to_write == 20000 * sizeof(float), "bytes of one read");
      if (kind != RowKind::kConfident) continue;
      // The pieces of five tokens, and a segment for a tie at the boundary.
      const uint64_t more = (5 * cuda::kSegment / cuda::kPieces + cuda::kSegment) * sizeof(float);
      expect(result.bytes_to_decide <= 20000 * sizeof(float) + more,
             "one read to decide a confident row");
    }
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 100;
  try {
    kernels_agree_with_a_sort<float>(trials, 1);
    kernels_agree_with_a_sort<cuda::BFloat16>(trials, 2);
    kernels_agree_with_a_sort<cuda::Float16>(trials, 3);
    nothing_is_written_past_the_capacity();
    invalid_rows_have_no_ids();
    the_widest_row_is_written_in_rounds();
    the_second_kernel_reads_a_row_once();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("%s\n",
              failures == 0 ? "emulated kept ids: all passed" : "emulated kept ids: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
