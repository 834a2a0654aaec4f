// Safetensors: the weights of a Hugging Face folder, mapped into memory, every offset checked before it is followed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/files/mapped_file.hpp"

namespace engine {

/// Element types of the format that fill whole bytes. The engine computes with the first three.
enum class Dtype { f32, f16, bf16, f64, f8_e4m3, f8_e5m2, f8_e8m0, i8, i16, i32, i64, u8, u16, u32, u64, boolean };

std::string_view name_of(Dtype dtype);

/// One tensor inside a mapped file, row-major. `bytes` need not be aligned for the element type.
struct Tensor {
  Dtype dtype;
  std::vector<std::int64_t> shape;  // empty: a scalar
  std::span<const std::byte> bytes;
};

/// One .safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes without holes or overlaps.
class TensorFile {
 public:
  /// Throws BadInput if any length, offset, dtype or shape in the header disagrees with the others or with the file.
  static TensorFile open(const std::filesystem::path& path);

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  explicit TensorFile(const std::filesystem::path& path) : file_(path) {}

  MappedFile file_;
  std::map<std::string, Tensor> tensors_;
};

/// All weights of a model folder. Tensors live as long as the checkpoint, moved or not.
class Checkpoint {
 public:
  /// Reads `dir`/model.safetensors, else the shards that model.safetensors.index.json names, else every *.safetensors.
  /// Throws BadInput if there is none, or one is damaged, or a name is there twice, or a shard lacks a tensor.
  static Checkpoint open(const std::filesystem::path& dir);

  std::vector<std::string> names() const;  // sorted
  bool contains(const std::string& name) const { return tensors_.contains(name); }

  /// Throws BadInput if there is no such tensor.
  const Tensor& tensor(const std::string& name) const;
  /// Throws BadInput if there is no such tensor or its shape is another.
  const Tensor& require_tensor(const std::string& name, const std::vector<std::int64_t>& shape) const;
  /// Throws BadInput if a tensor is not among `used` and would change a result: all but rotary frequencies, which
  /// follow from the config, and a head that is the embedding once more.
  void refuse_others(const std::set<std::string>& used) const;

 private:
  void add(const std::string& name, const Tensor& tensor);
  void add_shards(const std::filesystem::path& index_path);

  std::string dir_;
  std::vector<TensorFile> files_;
  std::map<std::string, Tensor> tensors_;
};

/// The elements as floats, for f32, f16 and bf16. Throws BadInput, naming `name`, for any other dtype. Reads the file.
std::vector<float> to_float(const Tensor& tensor, std::string_view name = "tensor");

}  // namespace engine
