// The gradient of the training losses with respect to the logits, for a range of rows: the sums and
// the walk of the losses once more, then one read of the row that writes the gradient.
//
// Of token k it is p_k (A h_k + B) with h_k = m_k - a U_k, where U_k is the sum of u over the tail
// from k on. h is a function of the rank. Heavy tokens have their own, those of the head the same
// one, the others the mean of their slot: over light tokens of the tail h hardly changes, since m
// and a U decay alike. At the edge it falls by up to a p, so that the head is told apart.
#pragma once

#include "autodeco_loss_impl.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// What a walk leaves of its tokens.
struct RankShares {
  static constexpr bool kLabelApart = false;
  static constexpr int kSlots = Slots::kMax;
  static constexpr int kMostHeavy = 8192;
  static constexpr double kMostDrift = 0x1p-12;

  struct Sums {
    double head = 0.0;  // mass
    double in_tail = 0.0;
    double kept = 0.0;
    double kept_mass = 0.0;
    double later = 0.0;  // sum of mass in the tail times what the tail has kept up to its end

    void add(const TokenGroup& group, const HeadPart& part, const GroupShare& share,
             const SoftTopPWalk& walk) {
      const double mass = group.mass - part.mass;
      head += part.mass;
      in_tail += mass;
      kept += share.kept;
      kept_mass += share.kept_mass;
      later += mass * walk.tail;
    }

    // Mean of h by mass, of the head and the tail or of the tail.
    double mean(const SoftTopPWalk& walk, bool of_tail) const {
      const double a = walk.steepness;
      // Too light to be seen by the walk: past all others.
      if (!(head + in_tail > 0.0)) {
        return walk.passed() > walk.top_p ? walk.decay(walk.passed()) : h_of_head(walk);
      }
      const double left = in_tail * walk.tail - later + kept_mass;
      const double sum = kept - a * left;
      if (of_tail) return in_tail > 0.0 ? sum / in_tail : h_of_head(walk);
      return (head * h_of_head(walk) + sum) / (head + in_tail);
    }
  };

  static double h_of_head(const SoftTopPWalk& walk) { return 1.0 - walk.steepness * walk.tail; }

  int num_heavy = 0;
  int num_head = 0;  // of them
  double head = 0.0;
  float heavy_logit[kMostHeavy + 2 * kLanes];
  double tail_after[kMostHeavy + 2 * kLanes];
  Sums of_slot[RankShares::kSlots];
  Sums of_dust;
  Edge edge;
  double drift = 0.0;  // the most that h changes over a slot, by (a p)^2 m / 2 from token to token

  void heavy(float logit, const SoftTopPWalk& walk) {
    // Not by what the tail keeps, which may be 0.
    num_head += walk.head > head;
    head = walk.head;
    heavy_logit[num_heavy] = logit;
    tail_after[num_heavy] = walk.tail;
    ++num_heavy;
  }
  void slot(int number, const TokenGroup& group, const HeadPart& part, const GroupShare& share,
            const SoftTopPWalk& walk) {
    of_slot[number].add(group, part, share, walk);
    const double change = 0.5 * walk.steepness * walk.steepness * group.probability * share.kept;
    drift = change > drift ? change : drift;
  }
  void dust(const TokenGroup& group, const HeadPart& part, const GroupShare& share,
            const SoftTopPWalk& walk) {
    of_dust.add(group, part, share, walk);
  }
  void cut_at(const Edge& at) { edge = at; }

  // h of a heavy token.
  double heavy_h(int place, double probability, const SoftTopPWalk& walk) const {
    const double before = place > 0 ? tail_after[place - 1] : 0.0;
    const double after = tail_after[place];
    const double decay = place < num_head ? 1.0 : (after - before) / probability;
    return decay - walk.steepness * (walk.tail - (walk.exclusive ? after : before));
  }
};

// The gradient at token k is weight_k (h_factor h_k + constant + (k counts for the label ? edge :
// 0)) + other_weight_k * other, for the weights at the two temperatures; the label has what makes
// the sum zero.
struct GradientFactors {
  double h_factor = 0.0;
  double edge = 0.0;
  double constant = 0.0;
  double other = 0.0;
};

template <typename Element>
class GradientWriter {
 public:
  GradientWriter(const LossRow<Element>& of, const LossScale& other_scale, float other_max,
                 const GradientFactors& factors, const SoftTopPWalk& walk, const RankShares& shares,
                 const LightBand& light)
      : of_(of),
        other_scale_(other_scale),
        other_max_(other_max),
        factors_(factors),
        edge_(bounded(factors.edge)),
        other_(bounded(factors.other)),
        walk_(walk),
        shares_(shares),
        light_(light),
        of_head_(factor(RankShares::h_of_head(walk))) {
    const bool has_edge = shares.edge.logit < kInfinity;
    for (int slot = 0; slot < RankShares::kSlots; ++slot) {
      by_slot_[slot] = factor(shares.of_slot[slot].mean(walk, has_edge));
    }
    by_slot_[RankShares::kSlots] = factor(shares.of_dust.mean(walk, has_edge));
  }

  void write(Element* output) {
    const RankOfLabel rank(of_.row, of_.label);
    double others = 0.0;
    for (int number = 0; number < of_.row.num_blocks(); ++number) {
      const Block<Element> block = of_.row.block(number);
      const float max = of_.sums.block_max[number];
      Floats sum = {};
      for (int i = 0; i < block.padded; i += kLanes) {
        const int column = block.begin + i;
        const Floats logits = load(block.data + i);
        Floats values = gradient_of(logits, max);
        if (max >= rank.at_least) {
          add_where(at_least(logits, rank.lowest(column)), values,
                    of_.scale.weights(of_.scale.difference(logits, of_.sums.max)) * edge_);
        }
        values = choose(greater(logits, splat(-kInfinity)), values, Floats{});
        if (of_.label >= column && of_.label < column + kLanes) values[of_.label - column] = 0.0f;
        sum += values;
        write_lanes(output, column, values);
      }
      others += static_cast<double>(sum_of_lanes(sum));
    }
    Floats label = {};
    label[0] = static_cast<float>(-others);
    Element rounded[kLanes];
    store(rounded, label);
    output[of_.label] = rounded[0];
  }

 private:
  // Finite, also the sum of three of them, so that tokens without weight get 0 however small T is.
  static float bounded(double factor) {
    constexpr double kLargest = static_cast<double>(kLargestFloat) / 4.0;
    const double below = factor > kLargest ? kLargest : factor;
    return static_cast<float>(below < -kLargest ? -kLargest : below);
  }
  float factor(double h) const { return bounded(factors_.h_factor * h + factors_.constant); }

  Floats gradient_of(Floats logits, float block_max) {
    const Floats differences = of_.scale.difference(logits, of_.sums.max);
    Floats factors = splat(by_slot_[RankShares::kSlots]);
    const bool has_light = factors_.h_factor != 0.0 && block_max >= light_.light_logit;
    if (has_light) {
      const Ints slots = light_.band.slot(logits, differences);
      for (int lane = 0; lane < kLanes; ++lane) factors[lane] = by_slot_[slots[lane]];
    }
    if (block_max >= shares_.edge.logit) {
      factors = choose(greater(logits, splat(shares_.edge.logit)), splat(of_head_), factors);
      uint32_t equals = bits_of(equal(logits, splat(shares_.edge.logit)));
      for (; equals != 0; equals &= equals - 1) {
        if (equals_seen_++ < shares_.edge.equals) factors[__builtin_ctz(equals)] = of_head_;
      }
    }
    if (has_light) {
      uint32_t heavy = bits_of(at_least(logits, splat(light_.heavy_logit)));
      for (; heavy != 0; heavy &= heavy - 1) {
        const int lane = __builtin_ctz(heavy);
        const float logit = logits[lane];
        factors[lane] = factor(shares_.heavy_h(place_of(logit), of_.probability(logit), walk_));
      }
    }
    Floats values = of_.scale.weights(differences) * factors;
    if (factors_.other != 0.0) {
      values += other_scale_.weights(other_scale_.difference(logits, other_max_)) * other_;
    }
    return values;
  }

  // Of equal heavy tokens, the one whose turn it is: they come in the order of their rank.
  int place_of(float logit) {
    int low = 0;
    int high = shares_.num_heavy - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (shares_.heavy_logit[middle] > logit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low + used_[low]++;
  }

  void write_lanes(Element* output, int column, Floats values) const {
    const int left = of_.row.vocab() - column;
    if (left >= kLanes) {
      store(output + column, values);
      return;
    }
    Element lanes[kLanes];
    store(lanes, values);
    for (int lane = 0; lane < left; ++lane) output[column + lane] = lanes[lane];
  }

  const LossRow<Element>& of_;
  const LossScale& other_scale_;
  float other_max_;
  const GradientFactors& factors_;
  float edge_;
  float other_;
  const SoftTopPWalk& walk_;
  const RankShares& shares_;
  const LightBand& light_;
  float of_head_;
  int64_t equals_seen_ = 0;                // of the token on the edge
  float by_slot_[RankShares::kSlots + 1];  // the last one is the dust's
  int used_[RankShares::kMostHeavy + 2 * kLanes] = {};
};

template <typename Element>
void fill_row(Element* output, int64_t vocab, float value) {
  Element lanes[kLanes];
  store(lanes, splat(value));
  for (int64_t column = 0; column < vocab; ++column) output[column] = lanes[0];
}

template <typename Element>
void gradient_of_row(const AutodecoLossGradientArguments& arguments, int64_t row_index,
                     const Row<Element>& row, Element* output) {
  const LossOptions& options = arguments.options;
  const int64_t num_rows = arguments.layout.num_rows;
  const float temperature = arguments.temperature[row_index];
  const float top_p = arguments.top_p[row_index];
  const int64_t label_index = arguments.labels[row_index];
  if (loss_status(temperature, top_p, label_index, arguments.layout.vocab, options) !=
      RowStatus::kValid) {
    fill_row(output, row.vocab(), kNaN);
    return;
  }
  const int label = static_cast<int>(label_index);
  const LossScale scale(clamped(temperature, options.top_p_temperature_clamp));
  const LossScale other_scale(clamped(temperature, options.temperature_clamp));
  const bool same = scale.temperature == other_scale.temperature;
  LossSums sums;
  sum_row(row, scale, label, UnitSum::kWherePlain, sums);
  const float label_logit = row[label];
  if (sums.status != RowStatus::kValid || label_logit == -kInfinity) {
    fill_row(output, row.vocab(), sums.status == RowStatus::kValid ? 0.0f : kNaN);
    return;
  }
  const double total = sums.all.total();
  const double unit_weight =
      exponential(static_cast<double>(label_logit) - static_cast<double>(sums.max)) /
      unit_total(row, scale, sums);
  GradientFactors factors;
  if (arguments.counted[row_index]) {
    LossSums at_other;
    if (!same) sum_row(row, other_scale, kNoLabel, UnitSum::kNo, at_other);
    const double other_total = same ? total : at_other.all.total();
    const double weight =
        options.megatron ? exponential(-other_scale.distance(label_logit, sums.max)) / other_total
                         : unit_weight;
    const double factor = static_cast<double>(arguments.loss_gradients[row_index]) * weight /
                          (other_scale.temperature * other_total);
    (same ? factors.constant : factors.other) += factor;
  }
  LogitList list;
  const float lightest = lightest_logit(scale, sums, kLight);
  list_row(row, sums, lightest, list);
  const LossRow<Element> of = {row, scale, sums, list, label};
  SoftTopPWalk walk{options.steepness, static_cast<double>(top_p), options.exclusive};
  RankShares shares;
  LightBand light(row, scale, sums, list, lightest, RankShares::kMostHeavy, RankShares::kSlots);
  if (arguments.counted[num_rows + row_index]) {
    LabelToken token;
    walk = walk_row(of, options, top_p, light, token, shares);
    constexpr double kShares[] = {Dust::kLightest, kLight};
    for (const double share : kShares) {
      // Over dust h changes by up to a p.
      if (options.steepness <= kSteep && shares.drift <= RankShares::kMostDrift) break;
      // Each token gets its own h, if they are few enough.
      const float lowest = lightest_logit(scale, sums, share);
      list_row(row, sums, lowest, list);
      if (!list.complete || list.size > RankShares::kMostHeavy) continue;
      light = LightBand(row, scale, sums, list, lowest, static_cast<int>(1.0 / share),
                        RankShares::kSlots);
      shares = RankShares{};
      walk = walk_row(of, options, top_p, light, token, shares);
      break;
    }
    const SoftTopPLoss loss =
        soft_top_p_loss(walk, token, scale.temperature, options.mass_eps, options.probability_eps);
    const double factor = static_cast<double>(arguments.loss_gradients[num_rows + row_index]) *
                          unit_weight / (scale.temperature * total);
    factors.h_factor = factor * loss.per_share;
    factors.edge = factor * loss.edge;
    factors.constant -= factor * loss.mean;
  }
  GradientWriter<Element>(of, other_scale, sums.max, factors, walk, shares, light).write(output);
}

void autodeco_loss_gradient_rows(const AutodecoLossGradientArguments& arguments, int64_t begin,
                                 int64_t end) {
  const int64_t num_rows = arguments.layout.num_rows;
  const int64_t vocab = arguments.layout.vocab;
  const auto write_row = [&](int64_t row_index, auto* output) {
    using Element = std::remove_pointer_t<decltype(output)>;
    output += row_index * vocab;
    if (!arguments.counted[row_index] && !arguments.counted[num_rows + row_index]) {
      fill_row(output, vocab, 0.0f);
      return;
    }
    const Row<Element> row(
        static_cast<const Element*>(arguments.logits) + row_offset(arguments.layout, row_index),
        vocab);
    gradient_of_row(arguments, row_index, row, output);
  };
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    switch (arguments.dtype) {
      case DType::kFloat32:
        write_row(row_index, static_cast<float*>(arguments.gradient));
        break;
      case DType::kBFloat16:
        write_row(row_index, static_cast<BFloat16*>(arguments.gradient));
        break;
      case DType::kFloat16:
        write_row(row_index, static_cast<Float16*>(arguments.gradient));
        break;
    }
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
