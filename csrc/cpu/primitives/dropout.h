// Dropout: a linear map once its mask is drawn, which every pass draws again.
#pragma once

#include "cpu/frame.h"
#include "formulas/dropout.h"
#include "formulas/windows.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Dropout {
  static void forward(const Frame<T>& f, const Node& node) {
    apply(f, node, f.activation(node.input[0]), f.activation_out(node.output), GradientMode::kOverwrite);
  }
  static void backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.input_mode[0]))
      apply(f, node, f.cotangent(node.output), f.cotangent(node.input[0]), node.input_mode[0]);
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    apply(f, node, f.activation_dot(node.input[0]), f.activation_dot(node.output), GradientMode::kOverwrite);
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.input_mode[0]))
      apply(f, node, f.cotangent_dot(node.output), f.cotangent_dot(node.input[0]), node.input_mode[0]);
  }

 private:
  static constexpr int64_t kDrawCost = 8;  // of an element, in multiply-adds

  // All planes have one leading dimension.
  static void apply(const Frame<T>& f, const Node& node, const T* x, T* y, GradientMode mode) {
    const Value& v = f.value(node.output);
    const DropoutDraws<T> draws(f.random, node);
    const int64_t size = v.rows * v.ld, count = v.rows * v.channels / node.random.each;
    f.share(f.examples(), kDrawCost * size, [&](int64_t begin, int64_t end, T* scratch) {
      for (int64_t n = begin; n < end; ++n)
        multiply(v, node.random.each, x + n * size, draw(draws, n * count, count, scratch), y + n * size, mode);
    });
  }

  // Draws first .. first + count - 1, by whole blocks.
  METAFAST_OUTLINED static const T* draw(const DropoutDraws<T>& draws, int64_t first, int64_t count, T* out) {
    const int64_t begin = first / 4, blocks = (first + count + 3) / 4 - begin;
    for (int64_t i = 0; i < blocks; ++i) {
      const Philox drawn = draws.block(uint32_t(begin + i));
      for (int j = 0; j < 4; ++j) out[4 * i + j] = draws.of_word(drawn.word[j]);
    }
    return out + first % 4;
  }

  // One example, whose `each` elements behind another have one factor.
  METAFAST_OUTLINED static void multiply(const Value& v, uint32_t each, const T* x, const T* factors, T* y,
                                         GradientMode mode) {
    for (int64_t r = 0; r < v.rows; ++r, x += v.ld, y += v.ld) {
      if (each == 1 && v.height == 0) {
        const T* row = factors + r * v.channels;
        for (int64_t c = 0; c < v.channels; ++c) put(y + c, x[c] * row[c], mode);
      } else {
        for (int64_t c = 0; c < v.channels; ++c) put(y + c, x[c] * factors[uint32_t(flattened(v, r, c)) / each], mode);
      }
      for (int64_t c = v.channels; c < v.ld; ++c) put(y + c, T(0), mode);
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
