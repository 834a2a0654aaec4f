// StopStrings: holds back what may become a stop string and no more, and cuts where the first complete one begins.
#include "engine/text/stop_strings.hpp"

#include <doctest/doctest.h>

#include <random>

#include "engine/temp_folder.hpp"

namespace {

using engine::StopStrings;
using engine_test::check_message;
using engine_test::complaint;
using Texts = std::vector<std::string>;

/// Where `text` is cut, by the definition; npos: nowhere.
std::size_t cut_of(const std::string& text, const Texts& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops)
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) return end - longest;
  }
  return std::string::npos;
}

/// How much of the end of `text` could be the beginning of a stop string.
std::size_t begun(const std::string& text, const Texts& stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops)
    for (std::size_t length = 1; length < stop.size(); ++length)
      if (text.ends_with(stop.substr(0, length))) longest = std::max(longest, length);
  return longest;
}

}  // namespace

TEST_CASE("text is shown up to the stop string, which is not") {
  StopStrings stops({"END"});
  CHECK(stops.push("some E") == "some ");
  CHECK(stops.push("N") == "");
  CHECK(stops.push("ds, EN") == "ENds, ");
  CHECK_FALSE(stops.found());
  CHECK(stops.push("D and more") == "");
  CHECK(stops.found());
  CHECK(stops.push("and more") == "");
  CHECK(stops.flush() == "");
}

TEST_CASE("what was held back comes out when the text ends") {
  StopStrings stops({"\n\nUser:"});
  CHECK(stops.push("Yes.\n\nUse") == "Yes.");
  CHECK(stops.flush() == "\n\nUse");
  CHECK(stops.push("r:") == "r:");  // begun anew
  CHECK_FALSE(stops.found());
}

TEST_CASE("of several stop strings the first to be complete cuts, the longest where two are") {
  StopStrings inner({"abcd", "bc"});
  CHECK(inner.push("xabcd") == "xa");
  StopStrings same_end({"bc", "abc"});
  CHECK(same_end.push("xabc") == "x");
  StopStrings none({});
  CHECK(none.push("abc") == "abc");
}

TEST_CASE("no piece splits a character") {
  StopStrings stops({"é!", "日本"});
  CHECK(stops.push("caf\xc3\xa9") == "caf");
  CHECK(stops.push("è") == "éè");
  CHECK(stops.push("日") == "");
  CHECK(stops.push("日月") == "日日月");
  CHECK(stops.push("x日本") == "x");
}

TEST_CASE("any pieces of any text come out as the definition says, and never later than they must") {
  std::mt19937 random(1);
  int num_found = 0;
  const auto letters = [&](unsigned longest) {
    std::string text;
    for (unsigned i = 0, n = static_cast<unsigned>(random() % (longest + 1)); i < n; ++i)
      text += static_cast<char>('a' + static_cast<int>(random() % 3));
    return text;
  };
  for (int run = 0; run < 3000; ++run) {
    Texts texts;
    for (unsigned i = 0, n = static_cast<unsigned>(1 + random() % 3); i < n; ++i) texts.push_back(letters(5) + "b");
    StopStrings stops(texts);
    std::string text, shown;
    while (text.size() < 30 && !stops.found()) {
      const std::string piece = letters(4);
      text += piece;
      shown += stops.push(piece);
      if (!stops.found()) REQUIRE(shown.size() == text.size() - begun(text, texts));
    }
    const std::size_t cut = cut_of(text, texts);
    REQUIRE(stops.found() == (cut != std::string::npos));
    shown += stops.flush();
    REQUIRE(shown == text.substr(0, cut));
    num_found += stops.found() ? 1 : 0;
  }
  CHECK(num_found > 1000);
  CHECK(num_found < 3000);
}

TEST_CASE("a stop string that cannot be met is refused") {
  check_message(complaint([] { StopStrings({"a", ""}); }), {"stop: no empty string expected, one found"});
  check_message(complaint([] { StopStrings({"\xff"}); }), {"stop: valid UTF-8 expected, other bytes found"});
}
