// Safetensors: the embedded weights, shards, every dtype the engine computes with, and every way a file can be wrong.
#include "engine/files/safetensors.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <set>

#include "engine/temp_folder.hpp"
#include "pagedkv/core/dtype.hpp"

namespace {

using engine::Checkpoint;
using engine::Dtype;
using engine::TensorFile;
using engine_test::check_message;
using engine_test::complaint;
using engine_test::TempFolder;

std::string length_prefix(std::uint64_t length) {
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes;
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string data(data_bytes, '\0');
  for (std::size_t i = 0; i < data_bytes; ++i) data[i] = static_cast<char>(i);
  return length_prefix(header.size()) + header + data;
}

std::string complaint_about(const std::string& bytes) {
  const TempFolder folder;
  folder.write("x.safetensors", bytes);
  return complaint([&] { TensorFile::open(folder.path() / "x.safetensors"); });
}

const std::string two_tensors =
    R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})";

}  // namespace

TEST_CASE("the embedded model's tensors are found with their shapes and values") {
  const Checkpoint checkpoint = Checkpoint::open(PAGEDKV_MODELS_DIR "/austen-5m");
  CHECK(checkpoint.names().size() == 47);
  CHECK_FALSE(checkpoint.contains("lm_head.weight"));
  const engine::Tensor& embedding = checkpoint.require_tensor("model.embed_tokens.weight", {4096, 256});
  CHECK(embedding.dtype == Dtype::bf16);
  const std::vector<float> values = engine::to_float(embedding);
  REQUIRE(values.size() == 4096u * 256u);
  double sum_of_squares = 0;
  for (const float value : values) sum_of_squares += static_cast<double>(value) * static_cast<double>(value);
  CHECK(sum_of_squares == doctest::Approx(7283.947108720614).epsilon(1e-9));
}

TEST_CASE("a tensor that is absent or has another shape is named") {
  const Checkpoint checkpoint = Checkpoint::open(PAGEDKV_MODELS_DIR "/austen-5m");
  check_message(complaint([&] { checkpoint.tensor("lm_head.weight"); }),
                {"austen-5m: tensor \"lm_head.weight\" expected, none found"});
  check_message(complaint([&] { checkpoint.require_tensor("model.norm.weight", {128, 2}); }),
                {"austen-5m: \"model.norm.weight\": shape [128, 2] expected, [256] found"});
}

TEST_CASE("a tensor that nobody uses is refused, but not rotary frequencies, nor a head that repeats the embedding") {
  const auto checkpoint_with = [](const TempFolder& folder, const std::string& name,
                                  const std::string& dtype_and_shape) {
    const std::string header = R"({"model.embed_tokens.weight":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]},")" +
                               name + R"(":{)" + dtype_and_shape + R"(,"data_offsets":[4,8]}})";
    folder.write("model.safetensors", length_prefix(header.size()) + header + std::string("abcdabcd"));
    return Checkpoint::open(folder.path());
  };
  const std::set<std::string> used{"model.embed_tokens.weight"};
  const auto complaint_about_other = [&](const std::string& name, const std::string& dtype_and_shape) {
    const TempFolder folder;
    const Checkpoint checkpoint = checkpoint_with(folder, name, dtype_and_shape);
    return complaint([&] { checkpoint.refuse_others(used); });
  };
  const std::string like_embedding = R"("dtype":"U8","shape":[2,2])";
  CHECK(complaint_about_other("model.layers.0.self_attn.rotary_emb.inv_freq", R"("dtype":"F32","shape":[1])").empty());
  CHECK(complaint_about_other("lm_head.weight", like_embedding).empty());
  check_message(complaint_about_other("lm_head.weight", R"("dtype":"U8","shape":[4])"), {"\"lm_head.weight\" found"});
  check_message(complaint_about_other("lm_head.weight", R"("dtype":"I8","shape":[2,2])"), {"\"lm_head.weight\" found"});
  check_message(complaint_about_other("model.layers.0.self_attn.q_proj.bias", like_embedding),
                {"no tensor that the model does not use expected, \"model.layers.0.self_attn.q_proj.bias\" found"});

  const TempFolder folder;
  const std::string header = R"({"model.embed_tokens.weight":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                             R"("lm_head.weight":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})";
  folder.write("model.safetensors", length_prefix(header.size()) + header + "abac");
  check_message(complaint([&] { Checkpoint::open(folder.path()).refuse_others(used); }), {"\"lm_head.weight\" found"});
}

TEST_CASE("f32, f16 and bf16 elements become floats wherever they lie, other dtypes are refused") {
  const TempFolder folder;
  const std::string header =
      R"({"pad":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},)"
      R"("h":{"dtype":"F16","shape":[2,1],"data_offsets":[9,13]},"b":{"dtype":"BF16","shape":[],"data_offsets":[13,15]}})";
  std::string data(1, '\0');
  const auto put = [&](auto bits) { data.append(reinterpret_cast<const char*>(&bits), sizeof bits); };
  put(1.5f);
  put(-0.25f);
  put(pagedkv::from_float<pagedkv::f16>(3.f));
  put(pagedkv::from_float<pagedkv::f16>(-0.5f));
  put(pagedkv::from_float<pagedkv::bf16>(7.f));
  folder.write("model.safetensors", length_prefix(header.size()) + header + data);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK(engine::to_float(checkpoint.tensor("f")) == std::vector<float>{1.5f, -0.25f});
  CHECK(engine::to_float(checkpoint.tensor("h")) == std::vector<float>{3.f, -0.5f});
  CHECK(engine::to_float(checkpoint.require_tensor("b", {})) == std::vector<float>{7.f});
  check_message(complaint([&] { engine::to_float(checkpoint.tensor("pad"), "pad"); }),
                {"\"pad\": F32, F16 or BF16 expected, U8 found"});
}

TEST_CASE("a file without tensors, an empty tensor and metadata are fine") {
  CHECK(complaint_about(file_of("{}", 0)) == "");
  CHECK(complaint_about(file_of(R"({"__metadata__":{"format":"pt"}}   )", 0)) == "");
  CHECK(complaint_about(file_of(R"({"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]}})", 0)) == "");
  CHECK(complaint_about(file_of(two_tensors, 19)) == "");
}

TEST_CASE("a header that does not fit the file is refused") {
  check_message(complaint_about(""), {"x.safetensors: 8 bytes of header length expected, 0 bytes found"});
  check_message(complaint_about("1234567"), {"8 bytes of header length expected, 7 bytes found"});
  check_message(complaint_about(length_prefix(3) + "{}"), {"header length: at most 2 expected, 3 found"});
  check_message(complaint_about(length_prefix(~std::uint64_t{0}) + "{}"),
                {"header length: at most 2 expected, 18446744073709551615 found"});
  const TempFolder folder;  // a sparse file: large enough for the header it claims, too large a header for the format
  folder.write("x.safetensors", length_prefix(100'000'001) + "{}");
  std::filesystem::resize_file(folder.path() / "x.safetensors", 200'000'000);
  check_message(complaint([&] { TensorFile::open(folder.path() / "x.safetensors"); }),
                {"header length: at most 100000000 expected, 100000001 found"});
}

TEST_CASE("a header that is not the JSON it must be is refused") {
  check_message(complaint_about(file_of("", 0)), {"x.safetensors: header: valid JSON expected, an error at byte 1"});
  check_message(complaint_about(file_of(R"({"a":)", 0)), {"header: valid JSON expected, an error at byte 6 found"});
  check_message(complaint_about(file_of("{\"\xff\":1}", 0)), {"header: valid JSON expected, an error at byte 3 found"});
  check_message(complaint_about(file_of("[]", 0)), {"x.safetensors: an object expected, [] found"});
  check_message(complaint_about(file_of(R"({"a":3})", 0)), {"x.safetensors: a: an object expected, 3 found"});
  check_message(complaint_about(file_of(R"({"a":{"dtype":"F32","shape":[1]}})", 4)),
                {"x.safetensors: a: field \"data_offsets\" expected, none found"});
  const std::string entry = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  check_message(complaint_about(file_of("{" + entry + "," + entry + "}", 1)),
                {"header: each key once expected, key \"a\" twice found"});
  check_message(complaint_about(file_of(std::string(5000, '['), 0)), {"header: JSON at most 32 levels deep expected"});
  check_message(complaint_about(file_of("{\"a\\n" + std::string(9999, 'b') + "\":1}", 0)), {"an object expected, 1"});
}

TEST_CASE("dtype, shape and offsets must agree with each other and with the file") {
  const auto with = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return complaint_about(
        file_of(R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}", 16));
  };
  CHECK(with(R"("F32")", "[4]", "[0,16]") == "");
  check_message(with(R"("F33")", "[4]", "[0,16]"), {"w.dtype: F32, F16, BF16", "expected, \"F33\" found"});
  check_message(with("7", "[4]", "[0,16]"), {"w.dtype: a string expected, 7 found"});
  check_message(with(R"("BF16")", "[4]", "[0,16]"), {"w.data_offsets: 8 bytes for BF16 [4] expected, 16 bytes found"});
  check_message(with(R"("F32")", "[5]", "[0,16]"), {"w.data_offsets: 20 bytes for F32 [5] expected, 16 bytes found"});
  check_message(with(R"("F32")", "[-4]", "[0,16]"), {"w.shape[0]: an integer from 0 to", "expected, -4 found"});
  check_message(with(R"("F32")", "[4.0]", "[0,16]"), {"w.shape[0]: an integer from 0 to", "expected, 4.0 found"});
  check_message(with(R"("F32")", "4", "[0,16]"), {"w.shape: an array expected, 4 found"});
  check_message(with(R"("F32")", "[4294967296,4294967296]", "[0,16]"),
                {"w.shape: a size below 2^63 bytes expected, [4294967296,4294967296] found"});
  check_message(with(R"("F32")", "[4611686018427387904,4,0]", "[0,0]"), {"w.shape: a size below 2^63 bytes expected"});
  check_message(with(R"("F32")", "[18446744073709551615]", "[0,16]"),
                {"w.shape[0]: an integer", "18446744073709551615"});
  check_message(with(R"("F32")", "[4]", "[0,17]"), {"w.data_offsets[1]: an integer from 0 to 16 expected, 17 found"});
  check_message(with(R"("F32")", "[4]", "[16,0]"), {"w.data_offsets[0]: an integer from 0 to 0 expected, 16 found"});
  check_message(with(R"("F32")", "[4]", "[-16,0]"), {"w.data_offsets[0]: an integer from 0 to 0 expected, -16 found"});
  check_message(with(R"("F32")", "[4]", "[0]"), {"w.data_offsets: two offsets expected, [0] found"});
  check_message(with(R"("F32")", "[4]", "[0,18446744073709551615]"), {"w.data_offsets[1]", "18446744073709551615"});
}

TEST_CASE("tensors that overlap, leave holes or do not end with the file are refused") {
  const auto with = [](const std::string& a, const std::string& b, std::size_t data_bytes) {
    return complaint_about(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                                       R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                                   data_bytes));
  };
  CHECK(with("[4,8]", "[0,4]", 8) == "");
  check_message(with("[0,4]", "[3,7]", 8), {"\"b\": data_offsets from 4 expected, an overlap from 3 found"});
  check_message(with("[0,4]", "[0,4]", 8), {"data_offsets from 4 expected, an overlap from 0 found"});
  check_message(with("[0,4]", "[5,9]", 9), {"\"b\": data_offsets from 4 expected, a hole up to 5 found"});
  check_message(with("[1,5]", "[5,9]", 9), {"\"a\": data_offsets from 0 expected, a hole up to 1 found"});
  check_message(with("[0,4]", "[4,8]", 9), {"x.safetensors: 8 bytes of tensors expected, 9 bytes found"});
  check_message(with("[0,4]", "[4,8]", 7), {"b.data_offsets[1]: an integer from 0 to 7 expected, 8 found"});
}

TEST_CASE("shards are found by their index, or all together without one") {
  const auto one = [](const std::string& name, std::size_t n) {
    const std::string size = std::to_string(n);
    return file_of("{\"" + name + R"(":{"dtype":"U8","shape":[)" + size + R"(],"data_offsets":[0,)" + size + "]}}", n);
  };
  const TempFolder folder;
  const auto message = [&] { return complaint([&] { Checkpoint::open(folder.path()); }); };
  check_message(message(), {": a folder with *.safetensors files expected, none found"});
  folder.write("s1.safetensors", one("a", 3));
  folder.write("s2.safetensors", one("b", 5));
  CHECK(Checkpoint::open(folder.path()).names() == std::vector<std::string>{"a", "b"});
  folder.write("s3.safetensors", one("b", 7));
  check_message(message(), {": \"b\": one such tensor expected, two found"});

  const auto index = [&](const std::string& map) {
    folder.write("model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + map + "}");
  };
  index(R"({"a":"s1.safetensors","b":"s3.safetensors"})");
  Checkpoint moved = Checkpoint::open(folder.path());
  const Checkpoint checkpoint = std::move(moved);
  CHECK(checkpoint.require_tensor("b", {7}).bytes[6] == std::byte{6});
  index(R"({"a":"s2.safetensors"})");
  check_message(message(),
                {"index.json: weight_map.a: a file that holds the tensor expected, \"s2.safetensors\" found"});
  index(R"({"a":"../s1.safetensors"})");
  check_message(message(), {"weight_map.a: a file name expected, \"../s1.safetensors\" found"});
  index(R"({"a":".."})");
  check_message(message(), {"weight_map.a: a file name expected, \"..\" found"});
  index(R"({"a":"s4.safetensors"})");
  check_message(message(), {"s4.safetensors: a readable file expected, none (No such file or directory) found"});
  folder.write("model.safetensors.index.json", "{}");
  check_message(message(), {"index.json: field \"weight_map\" expected, none found"});

  folder.write("model.safetensors", one("c", 2));  // the whole model in one file: nothing else is looked at
  CHECK(Checkpoint::open(folder.path()).names() == std::vector<std::string>{"c"});
  check_message(complaint([&] { Checkpoint::open(folder.path() / "nowhere"); }),
                {"nowhere: a folder with *.safetensors"});
}

TEST_CASE("no damaged safetensors file does more than throw BadInput") {
  const TempFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const std::string good = file_of(two_tensors, 19);
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    folder.write("x.safetensors", engine_test::damaged(good, random));
    const std::string message = complaint([&] {
      const TensorFile file = TensorFile::open(path);
      unsigned sum = 0;  // touch every byte that the header claims
      for (const auto& entry : file.tensors())
        for (const std::byte byte : entry.second.bytes) sum += std::to_integer<unsigned>(byte);
      CHECK(sum <= 255 * 19);
    });
    refused += message.empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}
