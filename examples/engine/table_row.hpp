// table_row(): one line of the tables that programs print: a name, then what printf makes of the rest.
#pragma once

#include <cstdio>
#include <string>

namespace engine {

template <class... Values>
std::string table_row(const char* name, const char* format, Values... values) {
  char text[160];
  std::snprintf(text, sizeof text, format, values...);
  std::string row = std::string("  ") + name;
  row.resize(34, ' ');
  return row + text + "\n";
}

}  // namespace engine
