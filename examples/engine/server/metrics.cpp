// Writing metrics: a family is a name, its help, its type and a line for each label.
#include "engine/server/metrics.hpp"

#include <cstdio>
#include <initializer_list>
#include <utility>

namespace engine::server {

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

class Writer {
 public:
  void gauge(const char* name, const char* help, double value) { family(name, help, "gauge", {{"", value}}); }
  void counter(const char* name, const char* help, double value) { family(name, help, "counter", {{"", value}}); }

  /// `lines`: labels in braces, and their values.
  void family(const std::string& name, const char* help, const char* type,
              std::initializer_list<std::pair<const char*, double>> lines) {
    head(name, help, type);
    for (const auto& [labels, value] : lines) line(name + labels, value);
  }

  void histogram(const std::string& name, const char* help, const Histogram& histogram) {
    head(name, help, "histogram");
    std::int64_t count = 0;
    for (std::size_t i = 0; i < Histogram::bounds.size(); ++i)
      bucket(name, number(Histogram::bounds[i]), count += histogram.counts[i]);
    bucket(name, "+Inf", count += histogram.counts.back());
    line(name + "_sum", histogram.sum);
    line(name + "_count", static_cast<double>(count));
  }

  std::string text() && { return std::move(text_); }

 private:
  void head(const std::string& name, const char* help, const char* type) {
    text_ += "# HELP pagedkv_" + name + " " + help + "\n# TYPE pagedkv_" + name + " " + type + "\n";
  }
  void line(const std::string& name, double value) { text_ += "pagedkv_" + name + " " + number(value) + "\n"; }
  void bucket(const std::string& name, const std::string& bound, std::int64_t count) {
    line(name + "_bucket{le=\"" + bound + "\"}", static_cast<double>(count));
  }

  std::string text_;
};

}  // namespace

std::string metrics_text(const ServiceStats& stats) {
  const auto as_double = [](std::int64_t value) { return static_cast<double>(value); };
  const auto ended = [&](Finish finish) { return as_double(stats.num_samples[static_cast<std::size_t>(finish)]); };
  Writer writer;
  writer.gauge("requests_running", "Requests that have a place in the batch.", stats.num_running);
  writer.gauge("requests_waiting", "Requests that wait for one.", stats.num_waiting);
  writer.counter("requests_refused_total", "Requests that found the queue full.", as_double(stats.num_refused));
  writer.family("samples_total", "Samples that ended, by their reason.", "counter",
                {{"{finish=\"stop\"}", ended(Finish::eos) + ended(Finish::stop)},
                 {"{finish=\"length\"}", ended(Finish::length)},
                 {"{finish=\"aborted\"}", ended(Finish::aborted)}});
  writer.counter("prompt_tokens_total", "Prompt tokens of finished requests.", as_double(stats.engine.prompt_tokens));
  writer.counter("cached_tokens_total", "Those of them that the prefix cache had.",
                 as_double(stats.engine.cached_tokens));
  writer.counter("generated_tokens_total", "Tokens generated.", as_double(stats.engine.generated_tokens));
  writer.counter("preemptions_total", "Requests pushed out, to go on later.", as_double(stats.engine.num_preemptions));
  writer.counter("steps_total", "Steps of the engine.", as_double(stats.engine.num_steps));
  writer.counter("step_seconds_total", "Seconds inside these steps.", stats.engine.seconds);
  writer.family("kv_blocks", "KV blocks, by their state.", "gauge",
                {{"{state=\"free\"}", stats.num_free},
                 {"{state=\"cached\"}", stats.num_idle},
                 {"{state=\"owned\"}", stats.num_blocks - stats.num_free - stats.num_idle}});
  writer.histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", stats.first_token);
  writer.histogram("inter_token_latency_seconds", "Between two tokens of a sample.", stats.inter_token);
  writer.histogram("request_seconds", "From a request's arrival to its end.", stats.whole);
  return std::move(writer).text();
}

}  // namespace engine::server
