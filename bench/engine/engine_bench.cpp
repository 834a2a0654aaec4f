// engine_bench: the reference engine under load, in the metrics of `vllm bench serve`, against a limit measured beside
// it. No tokenizer is needed: prompts are random ids.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/compute_speed.hpp"
#include "bench/engine/driver.hpp"
#include "bench/engine/limit.hpp"
#include "bench/engine/metrics.hpp"
#include "bench/engine/report.hpp"
#include "bench/engine/workloads.hpp"
#include "engine/bad_input.hpp"
#include "engine/flags.hpp"
#include "engine/session.hpp"
#include "engine/step_meter.hpp"

namespace {

using namespace bench;
using engine::BadInput;
using engine::EngineFlags;
using engine::SamplingParams;

struct Flags {
  EngineFlags engine;
  std::vector<std::string> runs{"offline", "online", "shared", "parallel", "beam"};
  int num_requests = 0;  // 0: each run's own
  int min_len = 100, max_len = 1024;
  std::uint32_t seed = 0;
  float temperature = 0.6f;
  std::vector<double> rates{2};
  OnlineShape online;
  int shared_len = 512;
  ServiceLevels levels{.ttft = 1000, .tpot = 50, .e2el = ServiceLevels::none};
  std::string json;
  std::string help;
};

Flags parse(int argc, char** argv) {
  Flags flags;
  flags.engine.least_seqs = 6;
  CLI::App app("Measures the reference engine: throughput, latencies, and the share of what the machine allows.",
               "engine_bench");
  app.option_defaults()->always_capture_default();
  app.add_option("--run", flags.runs, "offline, online, shared, parallel, beam: which of them")->delimiter(',');
  app.add_option("--requests", flags.num_requests,
                 "Requests of each run; 0: 256 offline, 128 online, 64 shared, 32 parallel, 8 of beam search");
  app.add_option("--min-len", flags.min_len, "Offline: prompts and outputs are of uniform lengths from this");
  app.add_option("--max-len", flags.max_len, "  to this; in other runs no longer than this");
  app.add_option("--seed", flags.seed, "Of ids, lengths and arrivals, as in Python's random");
  app.add_option("--temperature", flags.temperature, "Of sampling");
  app.add_option("--rates", flags.rates, "Online: requests a second, one run for each")->delimiter(',');
  app.add_option("--input-mean", flags.online.input.mean, "Online: tokens of a prompt, log-normal");
  app.add_option("--output-mean", flags.online.output.mean, "Online: tokens of an output, log-normal");
  app.add_option("--shared-len", flags.shared_len, "Shared: tokens that all prompts begin with");
  app.add_option("--slo-ttft", flags.levels.ttft, "Goodput counts requests with a ttft up to this, ms");
  app.add_option("--slo-tpot", flags.levels.tpot, "  and a tpot up to this, ms");
  app.add_option("--slo-e2el", flags.levels.e2el, "  and an e2el up to this, ms");
  app.add_option("--json", flags.json, "File for the results");
  engine::add_engine_flags(app, flags.engine);
  flags.help = engine::parse_command_line(app, argc, argv);
  engine::check_range("requests", flags.num_requests, 0, 1 << 20);
  engine::check_range("min-len", flags.min_len, 1, 1 << 20);
  engine::check_range("max-len", flags.max_len, flags.min_len, 1 << 20);
  engine::check_range("shared-len", flags.shared_len, 1, 1 << 20);
  for (const double rate : flags.rates) engine::check_range("rates", rate, 1e-3, 1e6);
  for (const std::string& run : flags.runs)
    if (run != "offline" && run != "online" && run != "shared" && run != "parallel" && run != "beam")
      throw BadInput("run", "offline, online, shared, parallel or beam", engine::in_quotes(run));
  flags.online.max_len = flags.max_len;
  return flags;
}

Ceilings measure_ceilings(const engine::LoadedModel& loaded) {
  Ceilings ceilings{.bytes_per_second = engine::machine_read_speed(loaded.plan()), .flops_per_second = 0};
#if defined(PAGEDKV_ENGINE_CUDA)
  if (loaded.plan().machine.is_gpu) {
    ceilings.flops_per_second = gpu_compute_speed();
    return ceilings;
  }
#endif
  ceilings.flops_per_second = host_compute_speed(loaded.plan().sizes.num_threads);
  return ceilings;
}

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags),
        loaded_(flags.engine, 16,
                [this](const engine::Batch& batch) {
                  if (meter_) meter_->observe(batch);
                }),
        ceilings_(measure_ceilings(loaded_)) {
    meter_.emplace(engine::step_meter(loaded_, flags.engine));
    const std::vector<Job> warm_up{{.prompt = {1, 2, 3}, .max_tokens = 64}};
    drive(loaded_.engine(), warm_up, {.temperature = 1});
  }

  engine::LoadedModel& loaded() { return loaded_; }
  int num_requests(int of_the_run) const { return flags_.num_requests > 0 ? flags_.num_requests : of_the_run; }
  int vocab() const { return loaded_.config().vocab; }

  Report run(const std::string& name, const std::vector<Job>& jobs, const SamplingParams& params, bool waits = false) {
    const engine::EngineStats before = loaded_.engine().stats();
    meter_->clear();
    const std::vector<RequestTimes> times = drive(loaded_.engine(), jobs, params);
    Report report{.name = name,
                  .metrics = metrics_of(times, flags_.levels),
                  .counts = EngineCounts(before, loaded_.engine().stats()),
                  .levels = flags_.levels,
                  .decode = engine::decode_traffic(meter_->steps(), loaded_.plan().step_weights,
                                                   loaded_.model().kv_bytes_per_token()),
                  .limit = {},
                  .ceilings = ceilings_};
    if (!waits) {  // the faster of what the machine did before and behind the run
      const Ceilings again = measure_ceilings(loaded_);
      report.ceilings = {.bytes_per_second = std::max(ceilings_.bytes_per_second, again.bytes_per_second),
                         .flops_per_second = std::max(ceilings_.flops_per_second, again.flops_per_second)};
      const StepCosts costs =
          step_costs(loaded_.config(), loaded_.plan().weight_bytes, loaded_.model().kv_bytes_per_token());
      report.limit = limit_of(meter_->steps(), costs, report.ceilings);
    }
    return report;
  }

 private:
  const Flags& flags_;
  std::optional<engine::StepMeter> meter_;
  engine::LoadedModel loaded_;
  Ceilings ceilings_;
};

// The runs that `kind` stands for; `tell` gets each report as it comes. No run finds another one's prompts in the
// cache: each has a seed of its own, offline the given one.
void run(Bench& bench, const Flags& flags, const std::string& kind, const std::function<void(const Report&)>& tell) {
  const SamplingParams sampling{.temperature = flags.temperature};
  const int vocab = bench.vocab();
  const std::uint32_t seed = flags.seed;
  if (kind == "offline") {
    const int count = bench.num_requests(256);
    const std::string lengths = std::to_string(flags.min_len) + ".." + std::to_string(flags.max_len);
    tell(bench.run("offline/" + std::to_string(count) + "x" + lengths,
                   offline_jobs(count, flags.min_len, flags.max_len, seed, vocab), sampling));
  } else if (kind == "online") {
    for (std::size_t i = 0; i < flags.rates.size(); ++i) {
      OnlineShape shape = flags.online;
      shape.rate = flags.rates[i];
      char name[64];
      std::snprintf(name, sizeof name, "online/%g_per_s", shape.rate);
      const auto own_seed = seed + 100 + static_cast<std::uint32_t>(i);
      tell(bench.run(name, online_jobs(bench.num_requests(128), shape, own_seed, vocab), sampling, true));
    }
  } else if (kind == "shared") {
    const int count = bench.num_requests(64), shared_len = std::min(flags.shared_len, flags.max_len);
    std::vector<Job> jobs = shared_jobs(count, shared_len, 32, std::min(64, flags.max_len), seed + 200, vocab);
    const std::vector<Job> first(jobs.begin(), jobs.begin() + 1);
    const std::string name = "shared/" + std::to_string(count) + "x" + std::to_string(shared_len) + "+32";
    tell(bench.run(name + "/first", first, sampling));  // who finds nothing in the cache
    jobs.erase(jobs.begin());
    if (!jobs.empty()) tell(bench.run(name + "/others", jobs, sampling));
  } else {
    const bool is_beam = kind == "beam";
    const int count = bench.num_requests(is_beam ? 8 : 32), max_len = std::min(160, flags.max_len);
    SamplingParams params = sampling;
    (is_beam ? params.beam_width : params.n) = 6;
    const std::uint32_t own_seed = seed + (is_beam ? 400 : 300);
    tell(bench.run(kind + "/" + std::to_string(count) + "x6",
                   shared_jobs(count, 1, max_len, std::min(128, max_len), own_seed, vocab), params));
  }
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

int run(int argc, char** argv) {
  const Flags flags = parse(argc, argv);
  if (!flags.help.empty()) {
    std::fputs(flags.help.c_str(), stdout);
    return 0;
  }
  Bench bench(flags);
  const std::string model = flags.engine.model.filename().string(), device = bench.loaded().model().device();
  std::printf("%s on %s\n%s", model.c_str(), device.c_str(), bench.loaded().plan().table().c_str());
  nlohmann::ordered_json result{{"context",
                                 {{"date", today()},
                                  {"model", model},
                                  {"device", device},
                                  {"run_ahead", engine_options(bench.loaded().plan(), flags.engine).run_ahead},
                                  {"graphs", bench.loaded().plan().machine.is_gpu && flags.engine.use_graphs},
                                  {"memory", bench.loaded().plan().json()}}},
                                {"benchmarks", nlohmann::ordered_json::array()}};
  for (const std::string& kind : flags.runs)
    run(bench, flags, kind, [&](const Report& report) {
      std::printf("\n%s", report.table().c_str());
      std::fflush(stdout);
      result["benchmarks"].push_back(report.json());
    });
  if (!flags.json.empty() && !(std::ofstream(flags.json) << result.dump(1) << std::endl))
    throw BadInput("json", "a file that can be written", engine::in_quotes(flags.json));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engine_bench: %s\n", error.what());
  }
  return 2;
}
