// Report: what a run measured, as lines for people and as a row of JSON.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "bench/engine/limit.hpp"
#include "bench/engine/metrics.hpp"
#include "engine/stats.hpp"
#include "engine/step_shape.hpp"
#include "engine/table_row.hpp"

namespace bench {

/// What the engine counted during a run.
struct EngineCounts {
  std::int64_t steps = 0, preemptions = 0, cached_tokens = 0, block_copies = 0;
  double saved_by_sharing = 0;  // of all block table entries

  EngineCounts(const engine::EngineStats& before, const engine::EngineStats& after)
      : steps(after.num_steps - before.num_steps),
        preemptions(after.num_preemptions - before.num_preemptions),
        cached_tokens(after.cached_tokens - before.cached_tokens),
        block_copies(after.block_copies - before.block_copies) {
    const auto entries = static_cast<double>(after.table_entries - before.table_entries);
    if (entries > 0) saved_by_sharing = 1 - static_cast<double>(after.used_blocks - before.used_blocks) / entries;
  }
};

struct Report {
  std::string name;
  ServeMetrics metrics;
  EngineCounts counts;
  ServiceLevels levels;
  engine::DecodeTraffic decode;
  std::optional<Limit> limit;  // of runs that never wait for requests
  Ceilings ceilings;

  double share_of_limit() const { return limit->seconds() / metrics.duration; }
  double limit_throughput() const { return static_cast<double>(metrics.total_output_tokens) / limit->seconds(); }

  std::string table() const {
    using engine::table_row;
    const auto rate = [](const char* of, double per_second) { return table_row(of, "%12.2f /s", per_second); };
    const auto latency = [](const char* of, const Latency& l) {
      return table_row(of, "%12.2f %10.2f %10.2f %10.2f", l.mean, l.median, l.std, l.p99);
    };
    std::string text =
        name + "\n" +
        table_row("completed", "%12" PRId64 " requests, %" PRId64 " input tokens, %" PRId64 " output tokens",
                  metrics.completed, metrics.total_input_tokens, metrics.total_output_tokens) +
        table_row("duration", "%12.2f s, %" PRId64 " steps, %" PRId64 " preemptions", metrics.duration, counts.steps,
                  counts.preemptions) +
        rate("request throughput", metrics.request_throughput) + rate("request goodput", metrics.request_goodput) +
        rate("output throughput", metrics.output_throughput) +
        rate("total token throughput", metrics.total_token_throughput) +
        table_row("milliseconds", "%12s %10s %10s %10s", "mean", "median", "std", "p99") +
        latency("  ttft, time to first token", metrics.ttft) + latency("  tpot, time per output token", metrics.tpot) +
        latency("  itl, inter-token latency", metrics.itl) + latency("  e2el, end to end", metrics.e2el) +
        table_row("prefix-cache hits", "%12" PRId64 " tokens", counts.cached_tokens) +
        table_row("saved by sharing", "%12.0f %% of blocks, %" PRId64 " copied on write", 100 * counts.saved_by_sharing,
                  counts.block_copies) +
        table_row("steps that only decode", "%12" PRId64 ", in %.2f s, reading at %.1f GB/s", decode.num_steps,
                  decode.seconds, decode.bytes_per_second() * 1e-9);
    if (!limit) return text;
    return text +
           table_row("limit", "%12.2f s: %.2f s of reading at %.1f GB/s, %.2f s of computing at %.2f TFLOP/s",
                     limit->seconds(), limit->memory_seconds, ceilings.bytes_per_second * 1e-9, limit->compute_seconds,
                     ceilings.flops_per_second * 1e-12) +
           table_row("limit of output throughput", "%12.2f /s", limit_throughput()) +
           table_row("share of the limit", "%12.1f %%", 100 * share_of_limit());
  }

  nlohmann::ordered_json json() const {
    nlohmann::ordered_json row{{"name", name},
                               {"duration", metrics.duration},
                               {"completed", metrics.completed},
                               {"total_input_tokens", metrics.total_input_tokens},
                               {"total_output_tokens", metrics.total_output_tokens},
                               {"request_throughput", metrics.request_throughput},
                               {"request_goodput", metrics.request_goodput},
                               {"output_throughput", metrics.output_throughput},
                               {"total_token_throughput", metrics.total_token_throughput}};
    for (const auto& [of, l] :
         {std::pair{"ttft", &metrics.ttft}, {"tpot", &metrics.tpot}, {"itl", &metrics.itl}, {"e2el", &metrics.e2el}}) {
      const std::string ending = std::string("_") + of + "_ms";
      row["mean" + ending] = l->mean;
      row["median" + ending] = l->median;
      row["std" + ending] = l->std;
      row["p99" + ending] = l->p99;
    }
    for (const auto& [of, level] : {std::pair{"ttft", levels.ttft}, {"tpot", levels.tpot}, {"e2el", levels.e2el}})
      if (level < ServiceLevels::none) row[std::string("slo_") + of + "_ms"] = level;
    row["steps"] = counts.steps;
    row["preemptions"] = counts.preemptions;
    row["cached_tokens"] = counts.cached_tokens;
    row["block_copies"] = counts.block_copies;
    row["saved_by_sharing"] = counts.saved_by_sharing;
    row["decode_steps"] = decode.num_steps;
    row["decode_seconds"] = decode.seconds;
    row["decode_bytes_per_second"] = decode.bytes_per_second();
    if (limit) {
      row["limit_seconds"] = limit->seconds();
      row["limit_memory_seconds"] = limit->memory_seconds;
      row["limit_compute_seconds"] = limit->compute_seconds;
      row["limit_output_throughput"] = limit_throughput();
      row["share_of_limit"] = share_of_limit();
      row["ceiling_bytes_per_second"] = ceilings.bytes_per_second;
      row["ceiling_flops_per_second"] = ceilings.flops_per_second;
    }
    return row;
  }
};

}  // namespace bench
