#pragma once
// Element types of tensors.

#include <bit>
#include <cstdint>
#include <string>

namespace ttt {

enum class DType : std::uint8_t { kF64, kF32, kBF16, kI64, kI32, kU16, kU8 };

/// bfloat16 storage; arithmetic happens in float. Conversion rounds to nearest even.
struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffU) > 0x7f800000U;
    bits = is_nan ? std::uint16_t{0x7fc0}
                  : static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16U) & 1U)) >> 16U);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
  }
};

/// Bytes of one element.
std::int64_t size_of(DType dtype);
/// The type of sums, statistics and parameters beside activations of `dtype`: F32 beside BF16, else the same.
inline DType wide_type(DType dtype) { return dtype == DType::kBF16 ? DType::kF32 : dtype; }
/// "F64", "F32", "BF16", "I64", "I32", "U16", "U8": the names safetensors uses.
std::string name_of(DType dtype);

template <typename T>
inline constexpr bool kHasDType = false;
template <typename T>
inline constexpr DType kDType = DType::kU8;

#define TTT_DTYPE(type, dtype)                  \
  template <>                                   \
  inline constexpr bool kHasDType<type> = true; \
  template <>                                   \
  inline constexpr DType kDType<type> = dtype;
TTT_DTYPE(double, DType::kF64)
TTT_DTYPE(float, DType::kF32)
TTT_DTYPE(BFloat16, DType::kBF16)
TTT_DTYPE(std::int64_t, DType::kI64)
TTT_DTYPE(std::int32_t, DType::kI32)
TTT_DTYPE(std::uint16_t, DType::kU16)
TTT_DTYPE(std::uint8_t, DType::kU8)
#undef TTT_DTYPE

}  // namespace ttt
