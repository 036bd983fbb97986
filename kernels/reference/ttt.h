#pragma once
// TTT-Linear and TTT-MLP over whole sequences: the definition that kernels/ttt.h must match.
//
// Dims, options and equations: kernels/ttt.h. Tensors are flat, row-major, in that file's shapes.
// Numerics: every operation in T; T may be std::complex for complex-step derivatives (forward).
// Source: arXiv:2407.04620 sections 2.4-2.7 and appendix A; backward: docs/numerics.md, "TTT".

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/reference/ttt_inner.h"
#include "kernels/ttt.h"

namespace ttt::kernels::reference {

struct TttSizes {
  std::int64_t batch = 1;
  std::int64_t tokens = 1;
  std::int64_t heads = 1;
  std::int64_t features = 1;
  std::int64_t hidden = 1;  // of the MLP
};

/// The fast weights of all (batch, head) pairs: w1 [B, H, F, F or D], b1, w2, b2.
template <typename T>
struct TttWeights {
  std::vector<T> w1, b1, w2, b2;
};

/// What goes in; also the gradients that come out.
template <typename T>
struct TttTensors {
  std::vector<T> q, k, v;      // [B, T, H, F]
  std::vector<T> token_lr;     // [B, T, H]
  std::vector<T> token_scale;  // [K]
  std::vector<T> norm_weight;  // [H, F]
  std::vector<T> norm_bias;    // [H, F]
  TttWeights<T> initial;
};

template <typename T>
struct TttOutputs {
  std::vector<T> out;  // [B, T, H, F]
  TttWeights<T> final_state;
};

/// The inner model's state of one pair; TTT-Linear has one layer.
template <typename T>
struct InnerState {
  std::vector<InnerLayer<T>> layers;
};

/// One mini-batch of one pair.
template <typename T>
struct MiniBatch {
  Matrix<T> q, k, target;
  StepSizes<T> steps;
  InnerNorm<T> norm;
};

/// Everything that one mini-batch computes from its start's state.
template <typename T>
struct InnerPass {
  Matrix<T> z1, x2, z2;  // TTT-Linear: z1 only
  Matrix<T> g1, g2, u;   // u = G2 W2^T
  Matrix<T> z1_bar, x2_bar, z2_bar;
  Matrix<T> out;
  InnerState<T> next;
};

template <typename T>
InnerPass<T> linear_pass(const InnerState<T>& state, const MiniBatch<T>& batch) {
  InnerPass<T> pass;
  const InnerLayer<T>& layer = state.layers[0];
  pass.z1 = apply_layer(layer, batch.k);
  pass.g1 = loss_gradient(pass.z1, batch.target, batch.norm);
  pass.z1_bar = read(layer, batch.q, batch.k, pass.g1, batch.steps);
  pass.out = layer_norm(pass.z1_bar, batch.norm);
  pass.next.layers = {update(layer, batch.k, pass.g1, batch.steps)};
  return pass;
}

template <typename T>
InnerPass<T> mlp_pass(const InnerState<T>& state, const MiniBatch<T>& batch) {
  InnerPass<T> pass;
  const InnerLayer<T>& first = state.layers[0];
  const InnerLayer<T>& second = state.layers[1];
  pass.z1 = apply_layer(first, batch.k);
  pass.x2 = map(pass.z1, GeluTanh<T>::value);
  pass.z2 = apply_layer(second, pass.x2);
  pass.g2 = loss_gradient(pass.z2, batch.target, batch.norm);
  pass.u = pass.g2 * transpose(second.w);
  pass.g1 = hadamard(pass.u, map(pass.z1, GeluTanh<T>::first_derivative));
  pass.z1_bar = read(first, batch.q, batch.k, pass.g1, batch.steps);
  pass.x2_bar = map(pass.z1_bar, GeluTanh<T>::value);
  pass.z2_bar = read(second, pass.x2_bar, pass.x2, pass.g2, batch.steps);
  pass.out = layer_norm(pass.z2_bar, batch.norm);
  pass.next.layers = {update(first, batch.k, pass.g1, batch.steps),
                      update(second, pass.x2, pass.g2, batch.steps)};
  return pass;
}

template <typename T>
InnerPass<T> inner_pass(const InnerState<T>& state, const MiniBatch<T>& batch) {
  InnerPass<T> pass = state.layers.size() == 1 ? linear_pass(state, batch) : mlp_pass(state, batch);
  if (batch.norm.enabled) pass.out = pass.out + batch.q;
  return pass;
}

template <typename T>
struct MiniBatchGradients {
  Matrix<T> d_q, d_k, d_target;
  Matrix<T> d_steps;  // dL/dM
  NormGradients<T> d_norm;
  InnerState<T> d_state;
};

/// `d_next` is the gradient of the state after the mini-batch.
template <typename T>
MiniBatchGradients<T> linear_pass_backward(const InnerState<T>& state, const MiniBatch<T>& batch,
                                           const InnerPass<T>& pass, const Matrix<T>& d_out,
                                           const InnerState<T>& d_next) {
  MiniBatchGradients<T> d;
  d.d_steps = Matrix<T>(batch.k.rows, batch.k.rows);
  d.d_norm = {std::vector<T>(batch.k.cols), std::vector<T>(batch.k.cols)};
  const Matrix<T> d_z_bar = layer_norm_backward(pass.z1_bar, batch.norm, d_out, d.d_norm);
  ReadBackward<T> read = read_backward(state.layers[0], batch.q, batch.k, pass.g1, batch.steps,
                                       d_z_bar, d_next.layers[0], d.d_steps);
  const auto loss = loss_gradient_backward(pass.z1, batch.target, batch.norm, read.d_g, d.d_norm);
  d.d_q = read.d_x_bar;
  d.d_k = read.d_x + loss.d_z * transpose(state.layers[0].w);
  d.d_target = loss.d_target;
  read.d_layer.w = read.d_layer.w + transpose(batch.k) * loss.d_z;
  if (batch.steps.bias) read.d_layer.b = read.d_layer.b + sum_of_rows(loss.d_z);
  d.d_state.layers = {read.d_layer};
  return d;
}

template <typename T>
MiniBatchGradients<T> mlp_pass_backward(const InnerState<T>& state, const MiniBatch<T>& batch,
                                        const InnerPass<T>& pass, const Matrix<T>& d_out,
                                        const InnerState<T>& d_next) {
  const InnerLayer<T>& first = state.layers[0];
  const InnerLayer<T>& second = state.layers[1];
  const Matrix<T> slope = map(pass.z1, GeluTanh<T>::first_derivative);
  MiniBatchGradients<T> d;
  d.d_steps = Matrix<T>(batch.k.rows, batch.k.rows);
  d.d_norm = {std::vector<T>(batch.k.cols), std::vector<T>(batch.k.cols)};
  const Matrix<T> d_z2_bar = layer_norm_backward(pass.z2_bar, batch.norm, d_out, d.d_norm);
  ReadBackward<T> read2 = read_backward(second, pass.x2_bar, pass.x2, pass.g2, batch.steps,
                                        d_z2_bar, d_next.layers[1], d.d_steps);
  const Matrix<T> d_z1_bar =
      hadamard(read2.d_x_bar, map(pass.z1_bar, GeluTanh<T>::first_derivative));
  ReadBackward<T> read1 = read_backward(first, batch.q, batch.k, pass.g1, batch.steps, d_z1_bar,
                                        d_next.layers[0], d.d_steps);
  // G1 = U * phi'(Z1), U = G2 W2^T.
  const Matrix<T> d_u = hadamard(read1.d_g, slope);
  const Matrix<T> d_g2 = read2.d_g + d_u * second.w;
  const auto loss = loss_gradient_backward(pass.z2, batch.target, batch.norm, d_g2, d.d_norm);
  const Matrix<T> d_x2 = read2.d_x + loss.d_z * transpose(second.w);
  const Matrix<T> bend = map(pass.z1, GeluTanh<T>::second_derivative);
  const Matrix<T> d_z1 = hadamard(d_x2, slope) + hadamard(hadamard(read1.d_g, pass.u), bend);
  d.d_q = read1.d_x_bar;
  d.d_k = read1.d_x + d_z1 * transpose(first.w);
  d.d_target = loss.d_target;
  read1.d_layer.w = read1.d_layer.w + transpose(batch.k) * d_z1;
  read2.d_layer.w = read2.d_layer.w + transpose(pass.x2) * loss.d_z + transpose(d_u) * pass.g2;
  if (batch.steps.bias) {
    read1.d_layer.b = read1.d_layer.b + sum_of_rows(d_z1);
    read2.d_layer.b = read2.d_layer.b + sum_of_rows(loss.d_z);
  }
  d.d_state.layers = {read1.d_layer, read2.d_layer};
  return d;
}

/// Rows and states of one (batch, head) pair, cut out of the flat tensors and put back.
template <typename T>
struct PairAccess {
  TttSizes sizes;
  TttOptions options;
  std::int64_t batch = 0;
  std::int64_t head = 0;

  [[nodiscard]] std::int64_t token_index(std::int64_t t) const {
    return (batch * sizes.tokens + t) * sizes.heads + head;
  }

  [[nodiscard]] Matrix<T> rows(const std::vector<T>& x, std::int64_t begin,
                               std::int64_t count) const {
    Matrix<T> result(count, sizes.features);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t f = 0; f < sizes.features; ++f) {
        result(i, f) = x[token_index(begin + i) * sizes.features + f];
      }
    }
    return result;
  }

  void put_rows(const Matrix<T>& rows, std::int64_t begin, std::vector<T>& x) const {
    for (std::int64_t i = 0; i < rows.rows; ++i) {
      for (std::int64_t f = 0; f < sizes.features; ++f) {
        x[token_index(begin + i) * sizes.features + f] = rows(i, f);
      }
    }
  }

  [[nodiscard]] MiniBatch<T> mini_batch(const TttTensors<T>& tensors, std::int64_t begin) const {
    const std::int64_t count = std::min(options.mini_batch_size, sizes.tokens - begin);
    MiniBatch<T> result{rows(tensors.q, begin, count),
                        rows(tensors.k, begin, count),
                        rows(tensors.v, begin, count),
                        {},
                        {}};
    result.steps.bias = options.bias;
    result.norm.enabled = options.inner_norm;
    if (options.inner_norm) {
      result.target = result.target - result.k;
      const std::int64_t first = head * sizes.features;
      const auto cut = [&](const std::vector<T>& x) {
        return std::vector<T>(x.begin() + first, x.begin() + first + sizes.features);
      };
      result.norm.weight = cut(tensors.norm_weight);
      result.norm.bias = cut(tensors.norm_bias);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      result.steps.scale.push_back(tensors.token_scale[i]);
      result.steps.lr.push_back(tensors.token_lr[token_index(begin + i)]);
    }
    return result;
  }

  /// This pair's part of `flat` [B, H, n, m]; zeros where the tensor is absent.
  [[nodiscard]] Matrix<T> cut(const std::vector<T>& flat, std::int64_t n, std::int64_t m) const {
    Matrix<T> result(n, m);
    const std::int64_t first = (batch * sizes.heads + head) * n * m;
    if (!flat.empty()) std::copy_n(flat.begin() + first, n * m, result.values.begin());
    return result;
  }

  void put(const Matrix<T>& matrix, std::vector<T>& flat) const {
    const auto count = static_cast<std::int64_t>(matrix.values.size());
    flat.resize(sizes.batch * sizes.heads * count);
    std::ranges::copy(matrix.values, flat.begin() + (batch * sizes.heads + head) * count);
  }

  [[nodiscard]] InnerState<T> state(const TttWeights<T>& weights) const {
    const std::int64_t f = sizes.features;
    const std::int64_t d = options.model == InnerModel::kMlp ? sizes.hidden : f;
    InnerState<T> result;
    result.layers.push_back({cut(weights.w1, f, d), cut(weights.b1, 1, d)});
    if (options.model == InnerModel::kMlp) {
      result.layers.push_back({cut(weights.w2, d, f), cut(weights.b2, 1, f)});
    }
    return result;
  }

  void put_state(const InnerState<T>& state, TttWeights<T>& weights) const {
    put(state.layers[0].w, weights.w1);
    if (options.bias) put(state.layers[0].b, weights.b1);
    if (options.model == InnerModel::kMlp) {
      put(state.layers[1].w, weights.w2);
      if (options.bias) put(state.layers[1].b, weights.b2);
    }
  }
};

template <typename T, typename F>
void for_each_pair(const TttSizes& sizes, const TttOptions& options, F f) {
  for (std::int64_t b = 0; b < sizes.batch; ++b) {
    for (std::int64_t h = 0; h < sizes.heads; ++h) f(PairAccess<T>{sizes, options, b, h});
  }
}

/// The dual form, mini-batch by mini-batch.
template <typename T>
TttOutputs<T> ttt_forward(const TttSizes& sizes, const TttOptions& options,
                          const TttTensors<T>& tensors) {
  TttOutputs<T> result{std::vector<T>(tensors.q.size()), {}};
  for_each_pair<T>(sizes, options, [&](const PairAccess<T>& pair) {
    InnerState<T> state = pair.state(tensors.initial);
    for (std::int64_t t = 0; t < sizes.tokens; t += options.mini_batch_size) {
      const InnerPass<T> pass = inner_pass(state, pair.mini_batch(tensors, t));
      pair.put_rows(pass.out, t, result.out);
      state = pass.next;
    }
    pair.put_state(state, result.final_state);
  });
  return result;
}

/// The gradients of `tensors` given those of the outputs; empty vectors in `d_final` count as zero.
template <typename T>
TttTensors<T> ttt_backward(const TttSizes& sizes, const TttOptions& options,
                           const TttTensors<T>& tensors, const std::vector<T>& d_out,
                           const TttWeights<T>& d_final) {
  TttTensors<T> d;
  d.q = d.k = d.v = std::vector<T>(tensors.q.size());
  d.token_lr.resize(tensors.token_lr.size());
  d.token_scale.resize(tensors.token_scale.size());
  d.norm_weight.resize(tensors.norm_weight.size());
  d.norm_bias.resize(tensors.norm_bias.size());
  for_each_pair<T>(sizes, options, [&](const PairAccess<T>& pair) {
    std::vector<InnerState<T>> starts{pair.state(tensors.initial)};
    const std::int64_t size = options.mini_batch_size;
    for (std::int64_t t = 0; t + size < sizes.tokens; t += size) {
      starts.push_back(inner_pass(starts.back(), pair.mini_batch(tensors, t)).next);
    }
    InnerState<T> d_state = pair.state(d_final);
    for (auto m = static_cast<std::int64_t>(starts.size()) - 1; m >= 0; --m) {
      const MiniBatch<T> batch = pair.mini_batch(tensors, m * size);
      const InnerPass<T> pass = inner_pass(starts[m], batch);
      const Matrix<T> d_rows = pair.rows(d_out, m * size, batch.k.rows);
      MiniBatchGradients<T> part =
          starts[m].layers.size() == 1
              ? linear_pass_backward(starts[m], batch, pass, d_rows, d_state)
              : mlp_pass_backward(starts[m], batch, pass, d_rows, d_state);
      d_state = part.d_state;
      if (options.inner_norm) {
        part.d_q = part.d_q + d_rows;
        part.d_k = part.d_k - part.d_target;
      }
      pair.put_rows(part.d_q, m * size, d.q);
      pair.put_rows(part.d_k, m * size, d.k);
      pair.put_rows(part.d_target, m * size, d.v);
      for (std::int64_t i = 0; i < batch.k.rows; ++i) {
        for (std::int64_t j = 0; j <= i; ++j) {
          d.token_scale[i] += part.d_steps(i, j) * batch.steps.lr[j];
          d.token_lr[pair.token_index(m * size + j)] += part.d_steps(i, j) * batch.steps.scale[i];
        }
      }
      for (std::int64_t f = 0; options.inner_norm && f < sizes.features; ++f) {
        d.norm_weight[pair.head * sizes.features + f] += part.d_norm.d_weight[f];
        d.norm_bias[pair.head * sizes.features + f] += part.d_norm.d_bias[f];
      }
    }
    pair.put_state(d_state, d.initial);
  });
  return d;
}

/// The primal form: W_i = W - c_i sum_{j<=i} l_j k_j^T g_j, token by token.
template <typename T>
TttOutputs<T> ttt_forward_primal(const TttSizes& sizes, const TttOptions& options,
                                 const TttTensors<T>& tensors) {
  TttOutputs<T> result{std::vector<T>(tensors.q.size()), {}};
  for_each_pair<T>(sizes, options, [&](const PairAccess<T>& pair) {
    InnerState<T> state = pair.state(tensors.initial);
    for (std::int64_t t = 0; t < sizes.tokens; t += options.mini_batch_size) {
      const MiniBatch<T> whole = pair.mini_batch(tensors, t);
      InnerState<T> stepped;
      for (std::int64_t i = 0; i < whole.k.rows; ++i) {
        // The state after tokens 0..i is that of a mini-batch of just those tokens.
        PairAccess<T> prefix = pair;
        prefix.options.mini_batch_size = i + 1;
        const MiniBatch<T> seen = prefix.mini_batch(tensors, t);
        stepped = inner_pass(state, seen).next;
        const Matrix<T> q = pair.rows(tensors.q, t + i, 1);
        Matrix<T> z = apply_layer(stepped.layers[0], q);
        if (stepped.layers.size() == 2) {
          z = apply_layer(stepped.layers[1], map(z, GeluTanh<T>::value));
        }
        z = layer_norm(z, whole.norm);
        pair.put_rows(options.inner_norm ? z + q : z, t + i, result.out);
      }
      state = stepped;
    }
    pair.put_state(state, result.final_state);
  });
  return result;
}

}  // namespace ttt::kernels::reference
