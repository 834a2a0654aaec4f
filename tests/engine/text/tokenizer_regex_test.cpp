// Regex: patterns written for Oniguruma cut as there, and what would mean something else is refused.
#include <doctest/doctest.h>

#include "engine/temp_folder.hpp"
#include "engine/text/regex.hpp"

namespace {

using Pieces = std::vector<std::string_view>;

Pieces split(const char* pattern, std::string_view text) {
  Pieces pieces;
  engine::Regex(pattern, "pattern").split({{text}}, pieces);
  return pieces;
}

std::string complaint_about(const char* pattern) {
  return engine_test::complaint([&] { engine::Regex(pattern, "pattern"); });
}

}  // namespace

TEST_CASE("matches and what lies between them are the pieces, none of them empty") {
  CHECK(split("b+", "abbcb") == Pieces{"a", "bb", "c", "b"});
  CHECK(split("x*", "abc") == Pieces{"abc"});
  CHECK(split("b", "").empty());
  CHECK(split(R"(\\s\[|[\]]x)", "\\s[]x") == Pieces{"\\s[", "]x"});
}

TEST_CASE("a text ends where it ends, whatever follows it in memory") {
  const std::string_view text = "a  b";
  Pieces pieces;
  const engine::Regex regex(R"(\s+(?!\S))", "pattern");
  regex.split({{text.substr(0, 3), text}}, pieces);
  CHECK(pieces == Pieces{"a", "  ", "a", " ", " b"});
}

TEST_CASE("a space is what Unicode calls one now, in and outside of sets") {
  const std::string_view text = "a\u180eb\u00a0\u0085\u3000\u2028\u000bc";
  const Pieces pieces{"a\u180eb", "\u00a0\u0085\u3000\u2028\u000b", "c"};
  CHECK(split(R"(\s+)", text) == pieces);
  CHECK(split(R"(\S+)", text) == pieces);
  CHECK(split(R"([\s]+)", text) == pieces);
  CHECK(split(R"([^\s]+)", text) == pieces);
}

TEST_CASE("a line's ends are ends, a script has no extensions, case folds by Unicode") {
  CHECK(split("a$", "a\na") == Pieces{"a", "\n", "a"});
  CHECK(split("^a", "aa\na") == Pieces{"a", "a\n", "a"});
  CHECK(split(R"(\p{Han}+)", "一、一") == Pieces{"一", "、", "一"});  // U+3001 is used with Han, but is not Han
  CHECK(split(R"((?i:'s)|\p{Lu}\p{Ll}*)", "'ſ'SÀé") == Pieces{"'ſ", "'S", "Àé"});
}

TEST_CASE("what PCRE2 would read in another way is refused by name") {
  for (const char* part :
       {R"(\w)", R"(\b)", R"(\h)", R"(\v)", R"(\R)", R"(\X)", R"(\C)", R"(\u0041)", R"(\x41)", R"(\pL)", R"([\S])",
        "[[a]]", "[a&&b]", "[]a]", "a{1,2}+", "a{,2}", "(?i)a", "(?m:a)", "(?<n>a)"}) {
    CAPTURE(part);
    engine_test::check_message(complaint_about(part),
                               {"pattern: a pattern that PCRE2 reads as Oniguruma does expected"});
  }
  engine_test::check_message(complaint_about(R"(\p{L}|a\w)"), {R"("\w" found)"});
}

TEST_CASE("a pattern that does not compile, or works without end, is refused") {
  engine_test::check_message(complaint_about("(a"), {"pattern: a regular expression expected, missing closing"});
  engine_test::check_message(complaint_about(R"(\p{Klingon})"), {"pattern: a regular expression expected"});
  const std::string text = std::string(60, 'a') + "b";
  engine_test::check_message(engine_test::complaint([&] { split("(a+)+$", text); }),
                             {"pattern: a pattern that matches in bounded work expected"});
}
