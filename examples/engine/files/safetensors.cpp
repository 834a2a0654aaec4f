// Reading safetensors files that may be truncated or hostile.
#include "engine/files/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstring>
#include <limits>
#include <system_error>

#include "engine/bad_input.hpp"
#include "engine/files/json_field.hpp"
#include "pagedkv/core/dtype.hpp"

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and is read in place");

constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own limit

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  std::int64_t bytes;
};

constexpr DtypeRow dtype_rows[] = {
    {Dtype::f32, "F32", 4},         {Dtype::f16, "F16", 2},         {Dtype::bf16, "BF16", 2},
    {Dtype::f64, "F64", 8},         {Dtype::f8_e4m3, "F8_E4M3", 1}, {Dtype::f8_e5m2, "F8_E5M2", 1},
    {Dtype::f8_e8m0, "F8_E8M0", 1}, {Dtype::i8, "I8", 1},           {Dtype::i16, "I16", 2},
    {Dtype::i32, "I32", 4},         {Dtype::i64, "I64", 8},         {Dtype::u8, "U8", 1},
    {Dtype::u16, "U16", 2},         {Dtype::u32, "U32", 4},         {Dtype::u64, "U64", 8},
    {Dtype::boolean, "BOOL", 1}};

constexpr std::int64_t max_int64 = std::numeric_limits<std::int64_t>::max();

std::string describe(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

std::string count_bytes(std::integral auto count) { return std::to_string(count) + " bytes"; }

/// Reads one header entry and checks it against itself and against `data`, the file's bytes behind the header.
Tensor read_entry(const JsonField& entry, std::span<const std::byte> data) {
  const JsonField dtype = entry.at("dtype");
  const auto* const row = std::ranges::find(dtype_rows, dtype.string(), &DtypeRow::name);
  if (row == std::end(dtype_rows)) dtype.fail("F32, F16, BF16 or another known dtype");

  Tensor tensor{.dtype = row->dtype, .shape = {}, .bytes = {}};
  std::int64_t num_bytes = row->bytes;
  for (const JsonField& extent : entry.at("shape").elements()) {
    tensor.shape.push_back(extent.integer(0, max_int64));
    if (tensor.shape.back() != 0 && num_bytes > max_int64 / tensor.shape.back())
      entry.at("shape").fail("a size below 2^63 bytes");
    num_bytes *= tensor.shape.back();
  }

  const JsonField offsets = entry.at("data_offsets");
  const auto bounds = offsets.elements();
  if (bounds.size() != 2) offsets.fail("two offsets");
  const std::int64_t end = bounds[1].integer(0, static_cast<std::int64_t>(data.size()));
  const std::int64_t begin = bounds[0].integer(0, end);
  if (end - begin != num_bytes)
    offsets.fail(count_bytes(num_bytes) + " for " + std::string(row->name) + " " + describe(tensor.shape),
                 count_bytes(end - begin));
  tensor.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  return tensor;
}

/// The tensors must tile `data`: each begins where the one before ends, and the last ends with the file.
void check_tiling(const std::map<std::string, Tensor>& tensors, std::span<const std::byte> data,
                  const std::string& file) {
  std::vector<std::pair<std::span<const std::byte>, std::string_view>> pieces;
  for (const auto& [name, tensor] : tensors) pieces.emplace_back(tensor.bytes, name);
  std::ranges::sort(pieces, {}, [](const auto& piece) { return std::pair(piece.first.data(), piece.first.size()); });
  const std::byte* end = data.data();
  for (const auto& [bytes, name] : pieces) {
    if (bytes.data() != end)
      throw BadInput(
          file + ": " + in_quotes(name), "data_offsets from " + std::to_string(end - data.data()),
          (bytes.data() < end ? "an overlap from " : "a hole up to ") + std::to_string(bytes.data() - data.data()));
    end = bytes.data() + bytes.size();
  }
  if (end != data.data() + data.size())
    throw BadInput(file, count_bytes(end - data.data()) + " of tensors", count_bytes(data.size()));
}

template <class T>
std::vector<float> convert(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));  // the file promises no alignment
    values[i] = pagedkv::to_float(element);
  }
  return values;
}

}  // namespace

std::string_view name_of(Dtype dtype) { return std::ranges::find(dtype_rows, dtype, &DtypeRow::dtype)->name; }

TensorFile TensorFile::open(const std::filesystem::path& path) {
  TensorFile result(path);
  const auto bytes = result.file_.bytes();
  const std::string file = path.string();

  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes) throw BadInput(file, "8 bytes of header length", count_bytes(bytes.size()));
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  const std::uint64_t limit = std::min<std::uint64_t>(bytes.size() - sizeof header_bytes, max_header_bytes);
  if (header_bytes > limit)
    throw BadInput(file + ": header length", "at most " + std::to_string(limit), std::to_string(header_bytes));

  const auto data = bytes.subspan(sizeof header_bytes + static_cast<std::size_t>(header_bytes));
  const Json header = parse_json(result.file_.text().substr(sizeof header_bytes, header_bytes), file + ": header");
  for (const auto& [name, entry] : JsonField(header, file).members())
    if (name != "__metadata__") result.tensors_.emplace(name, read_entry(entry, data));
  check_tiling(result.tensors_, data, file);
  return result;
}

Checkpoint Checkpoint::open(const std::filesystem::path& dir) {
  Checkpoint checkpoint;
  checkpoint.dir_ = dir.string();
  const auto single = dir / "model.safetensors";
  const auto index = dir / "model.safetensors.index.json";
  if (!std::filesystem::exists(single) && std::filesystem::exists(index)) {
    checkpoint.add_shards(index);
    return checkpoint;
  }

  std::vector<std::filesystem::path> paths;
  if (std::filesystem::exists(single)) {
    paths.push_back(single);
  } else {
    std::error_code unreadable;  // then there is nothing to go through, and the message below says so
    for (const auto& entry : std::filesystem::directory_iterator(dir, unreadable))
      if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
    std::ranges::sort(paths);
  }
  if (paths.empty()) throw BadInput(checkpoint.dir_, "a folder with *.safetensors files", "none");
  for (const auto& path : paths) {
    checkpoint.files_.push_back(TensorFile::open(path));
    for (const auto& [name, tensor] : checkpoint.files_.back().tensors()) checkpoint.add(name, tensor);
  }
  return checkpoint;
}

void Checkpoint::add_shards(const std::filesystem::path& index_path) {
  const Json document = read_json(index_path);
  std::map<std::string, std::size_t> opened;  // shard -> its place in files_
  for (const auto& [name, field] : JsonField(document, index_path.string()).at("weight_map").members()) {
    const std::string& shard = field.string();
    // Only names of files beside the index: a folder from a stranger must not point elsewhere.
    if (shard.empty() || std::filesystem::path(shard).filename() != shard || shard == "..") field.fail("a file name");
    const auto [place, is_new] = opened.emplace(shard, files_.size());
    if (is_new) files_.push_back(TensorFile::open(index_path.parent_path() / shard));
    const auto& tensors = files_[place->second].tensors();
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) field.fail("a file that holds the tensor");
    add(name, tensor->second);
  }
}

void Checkpoint::add(const std::string& name, const Tensor& tensor) {
  if (!tensors_.emplace(name, tensor).second) throw BadInput(dir_ + ": " + in_quotes(name), "one such tensor", "two");
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& entry : tensors_) names.push_back(entry.first);
  return names;
}

const Tensor& Checkpoint::tensor(const std::string& name) const {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) throw BadInput(dir_, "tensor " + in_quotes(name), "none");
  return entry->second;
}

const Tensor& Checkpoint::require_tensor(const std::string& name, const std::vector<std::int64_t>& shape) const {
  const Tensor& found = tensor(name);
  if (found.shape != shape)
    throw BadInput(dir_ + ": " + in_quotes(name), "shape " + describe(shape), describe(found.shape));
  return found;
}

void Checkpoint::refuse_others(const std::set<std::string>& used) const {
  const auto embedding = tensors_.find("model.embed_tokens.weight");
  for (const auto& [name, tensor] : tensors_) {
    if (used.contains(name) || name.ends_with(".rotary_emb.inv_freq")) continue;
    const bool is_embedding = name == "lm_head.weight" && embedding != tensors_.end() &&
                              tensor.dtype == embedding->second.dtype && tensor.shape == embedding->second.shape &&
                              std::ranges::equal(tensor.bytes, embedding->second.bytes);
    if (!is_embedding) throw BadInput(dir_, "no tensor that the model does not use", in_quotes(name));
  }
}

std::vector<float> to_float(const Tensor& tensor, std::string_view name) {
  switch (tensor.dtype) {
    case Dtype::f32:
      return convert<float>(tensor.bytes);
    case Dtype::f16:
      return convert<pagedkv::f16>(tensor.bytes);
    case Dtype::bf16:
      return convert<pagedkv::bf16>(tensor.bytes);
    default:
      throw BadInput(in_quotes(name), "F32, F16 or BF16", name_of(tensor.dtype));
  }
}

}  // namespace engine
