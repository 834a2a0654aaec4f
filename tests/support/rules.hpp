// Every attention rule of the library with arguments that bite on short sequences, for tests that must hold for all.
#pragma once

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/attention/variants.hpp"

namespace pagedkv_test {

/// The arguments of the rules; pointers on side S, each [q_heads].
template <pagedkv::Space S>
struct Rules {
  const float *slopes, *sinks;
  int window = 7, sink_tokens = 3;
  pagedkv::TreeMask<S> tree{};  // left out where it has no bits

  /// Calls f(name, rule) for every rule.
  template <class F>
  void for_each(F&& f) const {
    f("Causal", pagedkv::Causal{});
    f("Full", pagedkv::Full{});
    f("SlidingWindow", pagedkv::SlidingWindow{.window = window, .sink_tokens = sink_tokens});
    f("SoftCap", pagedkv::SoftCap{.cap = 3.f});
    f("Alibi", pagedkv::Alibi<S>{slopes});
    f("SinkLogit", pagedkv::SinkLogit<S>{sinks});
    if (tree.sees != nullptr) f("TreeMask", tree);
  }

  /// Calls f(name, rule) for the six chains that are built for the GPU, named after models that use them.
  template <class F>
  void for_each_model_chain(F&& f) const {
    using namespace pagedkv;
    const SlidingWindow local{.window = window, .sink_tokens = 0},
        streaming{.window = window, .sink_tokens = sink_tokens};
    f("Causal, SoftCap (Gemma 2, global layers)", chain(Causal{}, SoftCap{.cap = 3.f}));
    f("SlidingWindow, SoftCap (Gemma 2, local layers)", chain(local, SoftCap{.cap = 3.f}));
    f("Causal, Alibi (BLOOM)", chain(Causal{}, Alibi<S>{slopes}));
    f("Causal, SinkLogit (gpt-oss, full layers)", chain(Causal{}, SinkLogit<S>{sinks}));
    f("SlidingWindow, SinkLogit (gpt-oss, local layers)", chain(local, SinkLogit<S>{sinks}));
    f("SlidingWindow, Alibi, SoftCap (all at once)", chain(streaming, Alibi<S>{slopes}, SoftCap{.cap = 3.f}));
  }

  /// Calls f(name, name, rule) for every chain of two, in both orders, each with itself too.
  template <class F>
  void for_each_chain(F&& f) const {
    for_each([&](const char* first, auto a) {
      for_each([&](const char* second, auto b) { f(first, second, pagedkv::chain(a, b)); });
    });
  }
};

/// The rules over the arrays of a generated problem.
template <class Generated>
Rules<pagedkv::Space::host> rules_of(Generated& generated) {
  return {.slopes = generated.slopes.data(),
          .sinks = generated.sinks.data(),
          .tree = {.tables = generated.problem().tables, .sees = generated.tree.data()}};
}

}  // namespace pagedkv_test
