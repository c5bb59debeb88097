// The names of all phases: what a kernel does between two barriers that all blocks of a task meet at. Plain C++.
//
// To add a primitive: its phases below, their device code in primitives/<name>.cuh (included by phases.cuh), and where
// and with how many tiles they run in primitives/<name>.h (included by schedule.cpp).
#pragma once

#include <stdint.h>

// X(phase, struct template of the scalar type)
#define METAFAST_PRIMITIVE_PHASES(X)                         \
  X(kActivationForward, ActivationForward)                   \
  X(kActivationBackward, ActivationBackward)                 \
  X(kActivationTangentForward, ActivationTangentForward)     \
  X(kActivationTangentBackward, ActivationTangentBackward)   \
  X(kLinearForward, LinearForward)                           \
  X(kLinearWeightGradient, LinearWeightGradient)             \
  X(kLinearBiasGradient, LinearBiasGradient)                 \
  X(kLinearInputGradient, LinearInputGradient)               \
  X(kLinearTangentForward, LinearTangentForward)             \
  X(kLinearTangentBiasGradient, LinearTangentBiasGradient)   \
  X(kLinearTangentInputGradient, LinearTangentInputGradient) \
  X(kConvForward, ConvForward)                               \
  X(kConvWeightGradient, ConvWeightGradient)                 \
  X(kWeightFold, WeightFold)                                 \
  X(kConvInputGradient, ConvInputGradient)                   \
  X(kGroupedConvForward, GroupedConvForward)                 \
  X(kGroupedConvWeightGradient, GroupedConvWeightGradient)   \
  X(kGroupedConvInputGradient, GroupedConvInputGradient)     \
  X(kBiasSums, BiasSums)                                     \
  X(kBiasFold, BiasFold)                                     \
  X(kMatmulForward, MatmulForward)                           \
  X(kMatmulBackward, MatmulBackward)                         \
  X(kPairForward, PairForward)                               \
  X(kPairBackward, PairBackward)                             \
  X(kFlattenForward, FlattenForward)                         \
  X(kFlattenBackward, FlattenBackward)                       \
  X(kAvgPoolForward, AvgPoolForward)                         \
  X(kAvgPoolBackward, AvgPoolBackward)                       \
  X(kMaxPoolForward, MaxPoolForward)                         \
  X(kMaxPoolTangentForward, MaxPoolTangentForward)           \
  X(kMaxPoolBackward, MaxPoolBackward)                       \
  X(kSoftmaxForward, SoftmaxForward)                         \
  X(kSoftmaxBackward, SoftmaxBackward)                       \
  X(kSparseMapForward, SparseMapForward)                     \
  X(kSparseMapBackward, SparseMapBackward)                   \
  X(kDropoutForward, DropoutForward)                         \
  X(kDropoutBackward, DropoutBackward)                       \
  X(kEmbeddingForward, EmbeddingForward)                     \
  X(kEmbeddingClear, EmbeddingClear)                         \
  X(kEmbeddingChains, EmbeddingChains)                       \
  X(kEmbeddingBackward, EmbeddingBackward)                   \
  X(kConvForwardStaged, ConvForwardStaged)                   \
  X(kConvWeightGradientStaged, ConvWeightGradientStaged)     \
  X(kConvInputGradientStaged, ConvInputGradientStaged)       \
  X(kLinearForwardStaged, LinearForwardStaged)               \
  X(kLinearWeightGradientStaged, LinearWeightGradientStaged) \
  X(kLinearInputGradientStaged, LinearInputGradientStaged)   \
  X(kConvForwardTf32, ConvForwardTf32)                       \
  X(kConvInputGradientTf32, ConvInputGradientTf32)           \
  X(kConvWeightGradientTf32, ConvWeightGradientTf32)         \
  X(kLinearForwardTf32, LinearForwardTf32)                   \
  X(kLinearInputGradientTf32, LinearInputGradientTf32)       \
  X(kLinearWeightGradientTf32, LinearWeightGradientTf32)     \
  X(kNormaliseStatistics, NormaliseStatistics)               \
  X(kNormaliseForward, NormaliseForward)                     \
  X(kNormaliseSetSums, NormaliseSetSums)                     \
  X(kNormaliseInputGradient, NormaliseInputGradient)         \
  X(kNormaliseColumnSums, NormaliseColumnSums)               \
  X(kNormaliseColumnFold, NormaliseColumnFold)               \
  X(kNormMoments, NormMoments)                               \
  X(kNormStatistics, NormStatistics)                         \
  X(kNormForward, NormForward)                               \
  X(kNormGradientSums, NormGradientSums)                     \
  X(kNormGradientFold, NormGradientFold)                     \
  X(kNormInputGradient, NormInputGradient)                   \
  X(kNormPoolForward, NormPoolForward)                       \
  X(kNormPoolGradientSums, NormPoolGradientSums)             \
  X(kNormPoolInputGradient, NormPoolInputGradient)

// X(phase, struct template of the scalar type): the engine's own, which see the task instead of a node.
#define METAFAST_ENGINE_PHASES(X)              \
  X(kGatherInitial, GatherInitial)             \
  X(kGatherHypers, GatherHypers)               \
  X(kLoadInput, LoadInput)                     \
  X(kLoadTargets, LoadTargets)                 \
  X(kLoss, Loss)                               \
  X(kLossTangent, LossTangent)                 \
  X(kClearGradient, ClearGradient)             \
  X(kRuleStep, RuleStep)                       \
  X(kWriteAdapted, WriteAdapted)               \
  X(kWriteLogits, WriteLogits)                 \
  X(kSeedLogits, SeedLogits)                   \
  X(kClearMetaGradient, ClearMetaGradient)     \
  X(kAddAdaptedCotangent, AddAdaptedCotangent) \
  X(kRuleAdjoint, RuleAdjoint)                 \
  X(kLoadVector, LoadVector)                   \
  X(kAddToLambda, AddToLambda)                 \
  X(kAddVectorProduct, AddVectorProduct)       \
  X(kAddDataGradients, AddDataGradients)       \
  X(kWriteGradients, WriteGradients)           \
  X(kSumGroups, SumGroups)                     \
  X(kSumTasks, SumTasks)                       \
  X(kFinish, Finish)

namespace metafast {

enum class Phase : int32_t {
#define METAFAST_NAME(PHASE, STRUCT) PHASE,
  METAFAST_PRIMITIVE_PHASES(METAFAST_NAME) METAFAST_ENGINE_PHASES(METAFAST_NAME)
#undef METAFAST_NAME
      kCount
};

}  // namespace metafast
