// What every row kernel is made of: a row and the blocks that share it, the streaming read, and the
// leader's decisions, which the other blocks carry out. A kernel is a few lines:
//
//   const RowTask<Element, kTeam> task(logits, layout, valid_vocab, team);
//   read_row(task, filters, details);
//   const Command command = lead_or_follow(task, [&](const auto& leader) { ... });
//   ... what every block does with the command ...
#pragma once

#include "draw.cuh"

namespace autodeco::cuda {

// Grid: as many blocks a row, in row-major order, as the launch chose.
template <typename Element, bool kTeam>
struct RowTask {
  int64_t row_index;
  Row<Element> row;
  Memory memory;
  Team<kTeam> team;

  __device__ __forceinline__ RowTask(const void* logits, const RowLayout& layout,
                                     const RowParameter<int64_t>& valid_vocab,
                                     const TeamScratch& scratch)
      : row_index(gpu::block_index() / Team<kTeam>::size_of(scratch)),
        row(logits, row_offset(layout, row_index),
            existing_columns(layout.vocab, value_at(valid_vocab, row_index))),
        memory(static_cast<int>(layout.vocab),
               Team<kTeam>::memory_of(scratch, row_index, layout.vocab)),
        team(scratch, memory, row.num_segments) {
    gpu::promise_num_threads<kThreads>();
    team.start();
  }
};

// The streaming read of a row whose parameters are valid. The leader then has what every block
// found; the plan is in head()->plan. Ends with a barrier of the team.
template <typename Element, bool kTeam>
__device__ __forceinline__ Scaling read_row(const RowTask<Element, kTeam>& task,
                                            const FilterParameters& filters, Details details) {
  const Plan plan = make_plan(filters, task.row_index, task.row.columns, details);
  const Scaling scaling(plan.temperature > 0.0f ? plan.temperature : 1.0f);
  if (gpu::thread_index() == 0) {
    keep<Element, kTeam>({{task.memory, scaling, task.row.num_segments}, task.row, task.team});
  }
  reset(task.team, plan, task.memory);
  summarize(task.row, task.team, plan, scaling, task.memory);
  task.team.barrier();
  if (plan.needs_digit) {
    collect_in_leader(task.team, task.memory, bins_of(task.memory.count_histogram()));
  }
  return scaling;
}

// The leader's lead(leader) returns the last command, kFinish or kWrite; until then the other
// blocks do what it commands. Returns that last command in every block.
template <typename Element, bool kTeam, typename Lead>
__device__ __forceinline__ Command lead_or_follow(const RowTask<Element, kTeam>& task, Lead lead) {
  if (task.team.leads()) {
    const Command last = lead(leader_of_block<Element, kTeam>());
    task.team.announce(last);
    task.team.barrier();
    return last;
  }
  for (;;) {
    task.team.barrier();
    const Command command = task.memory.state()->command;
    if (command.action == Action::kFinish || command.action == Action::kWrite) return command;
    execute<Element, kTeam>();
  }
}

}  // namespace autodeco::cuda
