#include "data/interchange/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

Tensor numbers(const Shape& shape, DType dtype) {
  Tensor wide(shape, DType::kF64);
  for (std::int64_t i = 0; i < wide.numel(); ++i) wide.data<double>()[i] = 0.5 * double(i) - 3;
  return to_dtype(wide, dtype);
}

bool equal_bits(const TensorView& a, const TensorView& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.num_bytes())) == 0;
}

// A file with this header and `num_bytes` zero bytes of data.
std::string file_of(const std::string& header, std::size_t num_bytes) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + std::string(num_bytes, '\0');
}

TEST(Safetensors, RoundTripKeepsBitsShapesAndMetadata) {
  const TemporaryDirectory directory;
  const std::string path = directory / "a.safetensors";
  const Tensor f64 = numbers(Shape{2, 3}, DType::kF64);
  const Tensor f32 = numbers(Shape{5}, DType::kF32);
  const Tensor bf16 = numbers(Shape{1, 2, 3}, DType::kBF16);
  const Tensor scalar = numbers(Shape{}, DType::kF32);
  const Tensor empty(Shape{0, 7}, DType::kF32);
  Tensor ids(Shape{3}, DType::kI64);
  for (int i = 0; i < 3; ++i) ids.data<std::int64_t>()[i] = -i;
  const std::vector<NamedTensor> tensors = {{"z", f64},    {"a", f32},   {"b", bf16},
                                            {"s", scalar}, {"e", empty}, {"ids", ids}};
  write_safetensors(path, tensors, {{"note", "\"quoted\""}});

  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("note"), "\"quoted\"");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b", "e", "ids", "s", "z"}));
  for (const auto& [name, view] : tensors) {
    EXPECT_EQ(file.info(name).shape, view.shape());
    EXPECT_TRUE(equal_bits(file.read(name), view)) << name;
  }
  EXPECT_FALSE(file.has("q"));
  expect_error(ExitCode::kCorruptInput, "no tensor 'q'", [&] { (void)file.read("q"); });

  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, contents_of(path).data(), sizeof(header_bytes));
  EXPECT_EQ(header_bytes % 8, 0U);
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(Safetensors, HalfPrecisionIsReadAsFloat) {
  const TemporaryDirectory directory;
  const std::string path = directory / "half.safetensors";
  std::string bytes = file_of(R"({"h":{"dtype":"F16","shape":[8],"data_offsets":[0,16]}})", 16);
  const std::uint16_t halves[8] = {0x3c00, 0xc000, 0x0000, 0x8000, 0x0001, 0x03ff, 0x7bff, 0x7c00};
  std::memcpy(bytes.data() + bytes.size() - sizeof(halves), halves, sizeof(halves));
  write_bytes(path, bytes);
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.info("h").dtype, DType::kF32);
  const Tensor read = file.read("h");
  const float expected[8] = {
      1.0F,     -2.0F,        0.0F,     -0.0F,
      0x1p-24F, 0x1.ff8p-15F, 65504.0F, std::numeric_limits<float>::infinity()};
  EXPECT_EQ(std::memcmp(read.data<float>(), expected, sizeof(expected)), 0);
}

struct LyingHeader {
  const char* what;
  const char* header;
  std::size_t num_bytes;
  const char* message;
};

TEST(Safetensors, LyingHeadersAreRefused) {
  const LyingHeader cases[] = {
      {"not an object", "[1]", 0, "does not begin with '{'"},
      {"no JSON", "{x", 0, "malformed"},
      {"text after it", "{} {}", 0, "malformed"},
      {"invalid UTF-8", "{\"\xff\":1}", 0, "malformed"},
      {"nested deeply", R"({"a":{"b":{"c":{"d":{"e":{}}}}}})", 0, "nested too deeply"},
      {"entry is a number", R"({"a":1})", 0, "tensor 'a'"},
      {"no dtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "tensor 'a'"},
      {"one key more", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
       "exactly"},
      {"unknown dtype", R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4, "F31"},
      {"dtype is a number", R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4, "dtype"},
      {"negative extent", R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "-1"},
      {"fractional extent", R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4,
       "extent"},
      {"extent above 2^63",
       R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4, "extent"},
      {"product overflows",
       R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4,
       "too large"},
      {"bytes overflow",
       R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4,
       "too large"},
      {"rank 9", R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1,
       "at most 8"},
      {"size does not fit the shape", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
       4, "span 4 bytes"},
      {"backwards", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "before"},
      {"three offsets", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4,
       "[begin, end]"},
      {"negative offset", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4,
       "[begin, end]"},
      {"past the end", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "of 4"},
      {"far past the end",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]}})",
       4, "ends at byte"},
      {"hole before", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "a hole"},
      {"bytes after", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5,
       "1 bytes after"},
      {"overlap",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "overlaps"},
      {"same name twice",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "'a' occurs twice"},
      {"same key twice", R"({"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}})",
       4, "'dtype' occurs twice"},
      {"metadata is not text", R"({"__metadata__":{"x":1}})", 0, "__metadata__ 'x'"},
  };
  const TemporaryDirectory directory;
  const std::string path = directory / "lying.safetensors";
  for (const LyingHeader& lie : cases) {
    SCOPED_TRACE(lie.what);
    write_bytes(path, file_of(lie.header, lie.num_bytes));
    expect_error(ExitCode::kCorruptInput, lie.message, [&] { SafetensorsFile::open(path); });
    expect_error(ExitCode::kCorruptInput, path, [&] { SafetensorsFile::open(path); });
  }
}

TEST(Safetensors, WrongHeaderLengthsAreRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory / "length.safetensors";
  const auto expect_refused = [&](const std::string& bytes, const std::string& part) {
    write_bytes(path, bytes);
    expect_error(ExitCode::kCorruptInput, part, [&] { SafetensorsFile::open(path); });
  };
  expect_refused("", "0 bytes");
  expect_refused("1234567", "7 bytes");
  expect_refused(std::string(8, '\xff') + "{}", "a header of");
  expect_refused(std::string("\x03\0\0\0\0\0\0\0{}", 10), "a header of 3 bytes");
  std::string large(8, '\0');
  const std::uint64_t length = (std::uint64_t{16} << 20U) + 1;
  std::memcpy(large.data(), &length, sizeof(length));
  expect_refused(large + "{" + std::string(length, ' '), "the limit is 16777216");
  expect_error(ExitCode::kMissingInput, "nothing",
               [&] { SafetensorsFile::open(directory / "nothing.safetensors"); });
}

TEST(Safetensors, FlippedHeaderBytesNeverCrash) {
  const TemporaryDirectory directory;
  const std::string path = directory / "flip.safetensors";
  const Tensor a = numbers(Shape{4, 2}, DType::kF32);
  const Tensor b = numbers(Shape{3}, DType::kBF16);
  write_safetensors(path, std::vector<NamedTensor>{{"first", a}, {"second", b}});
  const std::string original = contents_of(path);
  for (std::size_t at = 0; at < original.size() - 38; ++at) {
    for (const int bit : {0, 3, 7}) {
      std::string bytes = original;
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
      write_bytes(path, bytes);
      try {
        const SafetensorsFile file = SafetensorsFile::open(path);
        for (const std::string& name : file.names()) (void)file.read(name);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kCorruptInput);
      }
    }
  }
}

TEST(Safetensors, ShardedModelIsOneModel) {
  const TemporaryDirectory directory;
  const Tensor a = numbers(Shape{2}, DType::kF32);
  const Tensor b = numbers(Shape{3}, DType::kBF16);
  const std::string one = "model-00001-of-00002.safetensors";
  const std::string two = "model-00002-of-00002.safetensors";
  write_safetensors(directory / one, std::vector<NamedTensor>{{"a", a}});
  write_safetensors(directory / two, std::vector<NamedTensor>{{"b", b}});
  const auto write_index = [&](const std::string& map) {
    write_bytes(directory / "model.safetensors.index.json",
                R"({"metadata":{"total_size":14},"weight_map":)" + map + "}");
  };
  write_index(R"({"a":")" + one + R"(","b":")" + two + R"("})");
  const SafetensorsFile model = open_model(directory.str());
  EXPECT_TRUE(equal_bits(model.read("a"), a));
  EXPECT_TRUE(equal_bits(model.read("b"), b));

  const auto expect_refused = [&](const std::string& map, const std::string& part) {
    write_index(map);
    expect_error(ExitCode::kCorruptInput, part, [&] { open_model(directory.str()); });
  };
  expect_refused(R"({"a":")" + one + R"(","b":")" + one + R"("})", "tensor 'b' is not in");
  expect_refused(R"({"c":")" + one + R"("})", "tensor 'a': the index does not place it here");
  expect_refused(R"({"a":"../)" + one + R"("})", "not a file name");
  expect_refused(R"({"a":5})", "not a file name");
  // No file system has these: as files they would be missing or unreadable, which is the machine's fault.
  expect_refused(R"({"a":")" + std::string(256, 'm') + R"("})", "not a file name");
  expect_refused(R"({"a":"m\u0000.safetensors"})", "not a file name");
  expect_refused("[]", "no weight_map");
  write_index(R"({"a":"model-00009-of-00009.safetensors"})");
  expect_error(ExitCode::kMissingInput, "00009", [&] { open_model(directory.str()); });
}

TEST(Safetensors, WriterRefusesTheSameNameTwice) {
  const TemporaryDirectory directory;
  const Tensor a = numbers(Shape{2}, DType::kF32);
  expect_error(ExitCode::kInternal, "given twice", [&] {
    write_safetensors(directory / "twice.safetensors",
                      std::vector<NamedTensor>{{"a", a}, {"a", a}});
  });
}

}  // namespace
}  // namespace ttt::data
