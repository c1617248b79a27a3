// The columns of the kept tokens, in two kernels. Grid of both as in sample.cuh.
//
// The first finds what a row keeps (filter_logits.cuh). The second reads the row once: a block
// marks the kept columns of the segments it owns with a bit each, counts them, and then writes the
// marked columns where the blocks and segments before it end. Shared memory:
// shared_memory_bytes(vocab) in the first, marks_bytes(vocab, team size) in the second.
#pragma once

#include "autodeco/kept_indices.h"
#include "filter_logits.h"
#include "row_task.cuh"

namespace autodeco::cuda {

// The first kernel is that of filter_logits.
inline FilterKernelArguments count_kept_arguments(const KeptIndicesArguments& arguments) {
  FilterKernelArguments counting;
  counting.logits = arguments.logits;
  counting.dtype = arguments.dtype;
  counting.layout = arguments.layout;
  counting.team = arguments.team;
  counting.filters = arguments.filters;
  counting.status = arguments.status;
  counting.last = arguments.last;
  counting.counts = arguments.offsets + 1;
  return counting;
}

// Segments that a block marks before it writes. A block of a team marks all of its own at once.
constexpr int kMarkedSegments = kMaxSegments / 2;

// The shared memory of the second kernel.
struct Marks {
  TeamState team;
  uint32_t scratch[kMaxWarps];
  uint32_t before[kMarkedSegments];  // first how many marks a segment has, then how many precede it

  // [segments, 32]: a word for each lane, in the order in which a warp holds a segment.
  __device__ __forceinline__ uint32_t* bits() { return reinterpret_cast<uint32_t*>(this + 1); }
};

inline size_t marks_bytes(int64_t vocab, unsigned team_size) {
  const int64_t segments = (vocab + kSegment - 1) / kSegment;
  const int64_t share = (segments + team_size - 1) / team_size;
  const int64_t marked = share < kMarkedSegments ? share : kMarkedSegments;
  return sizeof(Marks) + static_cast<size_t>(marked) * 32 * sizeof(uint32_t);
}

// The one read of the row. Ends without a barrier.
template <typename Element>
__device__ __forceinline__ void mark_segments(const Row<Element>& row, LastKept last,
                                              int first_segment, int last_segment, Marks* marks) {
  for (int segment = first_segment + static_cast<int>(gpu::warp_index()); segment < last_segment;
       segment += num_warps()) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);  // -inf, which is never kept, beyond the last column
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) {
      const int column = column_of(segment, i / kVector, i % kVector);
      if (is_kept(last, Keys<Element>::of(logits[i]), column)) bits |= 1u << i;
    }
    const uint32_t count = warp_sum(gpu::count_bits(bits));
    const int place = segment - first_segment;
    marks->bits()[place * 32 + static_cast<int>(gpu::lane_index())] = bits;
    if (gpu::lane_index() == 0) marks->before[place] = count;
  }
}

// Turns the counts of the segments into what comes before each, and returns their sum. All threads;
// starts with a barrier and ends without one.
__device__ __forceinline__ uint32_t add_up_marks(int num_segments, Marks* marks) {
  gpu::block_barrier();
  uint32_t carried = 0;
#pragma unroll 1
  for (int begin = 0; begin < num_segments; begin += static_cast<int>(gpu::num_threads())) {
    const int segment = begin + static_cast<int>(gpu::thread_index());
    const uint32_t count = segment < num_segments ? marks->before[segment] : 0;
    uint32_t total;
    const uint32_t upto = carried + block_inclusive_sum(count, marks->scratch, &total);
    if (segment < num_segments) marks->before[segment] = upto - count;
    carried += total;
  }
  return carried;
}

// Writes the marked columns to ids[place ...], but nothing at or beyond `end`.
__device__ __forceinline__ void write_marks(int first_segment, int last_segment, Marks* marks,
                                            int32_t* ids, int64_t place, int64_t end) {
  for (int segment = first_segment + static_cast<int>(gpu::warp_index()); segment < last_segment;
       segment += num_warps()) {
    const int marked = segment - first_segment;
    const uint32_t bits = marks->bits()[marked * 32 + static_cast<int>(gpu::lane_index())];
    if (gpu::ballot(bits != 0) == 0) continue;
    int64_t segment_place = place + marks->before[marked];
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t mine = bits >> (v * kVector) & ((1u << kVector) - 1);
      const uint32_t count = gpu::count_bits(mine);
      const uint32_t upto = warp_inclusive_sum(count);
      int64_t slot = segment_place + (upto - count);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if ((mine >> i & 1u) == 0) continue;
        if (slot < end) ids[slot] = column_of(segment, v, i);
        ++slot;
      }
      segment_place += gpu::shuffle(upto, 31);
    }
  }
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kTeam>)
    write_kept_kernel(KeptIndicesArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout,
                                     arguments.filters.valid_vocab, arguments.team);
  const IdRange range = id_range(arguments, task.row_index);
  if (range.begin >= range.end) return;  // the same in the whole team
  const LastKept last = arguments.last[task.row_index];
  Marks* marks = reinterpret_cast<Marks*>(gpu::shared_memory());
  const Team<kTeam>& team = task.team;
  int64_t place = range.begin;
  int begin = team.first_segment;
  // In a team once, also where a block owns no segment: the others wait for it.
  do {
    const int left = team.last_segment - begin;
    const int end = begin + (left < kMarkedSegments ? left : kMarkedSegments);
    mark_segments(task.row, last, begin, end, marks);
    const uint32_t total = add_up_marks(end - begin, marks);
    TeamState* state = task.memory.state();
    if (gpu::thread_index() == 0) state->marked[team.rank()] = total;
    team.barrier();
    for (unsigned rank = 0; rank < team.rank(); ++rank) {
      place += *team.in_block(&state->marked[rank], rank);
    }
    write_marks(begin, end, marks, arguments.ids, place, range.end);
    if (!team.is_portable()) team.barrier();  // no peer needs the block's memory any more
    place += total;
    begin = end;
  } while (!kTeam && begin < team.last_segment && place < range.end);
}

}  // namespace autodeco::cuda
