"""Naming the values of pictures from their embeddings: scores of the values, calibrated probabilities, thresholds.

Shape suffixes: Q pictures, K labelled pictures, V values of one attribute, D embedding width.

    prototype    p_v = the mean of the embeddings of the labelled pictures with value v, of length 1
    prototypes   s_v = cos(e, p_v)
    neighbours   s_v = log Σ over the `count` nearest labelled pictures i with value v of exp(cos(e, e_i) / τ)
    probability  P(v) = softmax(s / T)_v, with the temperature T that gives the labels of other pictures the largest
                 likelihood (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)

Prototypes are those of prototypical networks (Snell et al., NeurIPS 2017), neighbours the weighted vote of DINO
(Caron et al., ICCV 2021).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07
"""Number of neighbours that vote, and τ of their votes."""
UNSEEN = -1e4
"""Score of a value that no labelled picture, or no neighbour, has: its probability is 0."""
BINS = 15
"""Bins of the expected calibration error."""
COLDEST, HOTTEST, TRIED = 1e-3, 1e2, 41
"""Range of the temperatures, and how many are tried: in the whole range, then twice between the best's neighbours."""


def prototypes(embeddings_kd: Tensor, values_k: Tensor, n_values: int) -> Tensor:
    """Return the prototype of every value, V×D float32 of length 1; 0 for a value that no picture has.

    A picture with several values occurs once for each. Raises ValueError if shapes or values do not fit.
    """
    _check_labels(embeddings_kd, values_k, n_values)
    sums_vd = torch.zeros(n_values, embeddings_kd.shape[1], dtype=torch.float64)
    sums_vd.index_add_(0, values_k.cpu(), embeddings_kd.double().cpu())
    return torch.nn.functional.normalize(sums_vd, dim=1).float()


def prototype_scores(embeddings_qd: Tensor, prototypes_vd: Tensor) -> Tensor:
    """Return the cosine of every picture with every prototype, Q×V float64; UNSEEN for prototypes of 0."""
    scores_qv = embeddings_qd.double().cpu() @ prototypes_vd.double().T
    return scores_qv.masked_fill(prototypes_vd.eq(0).all(1), UNSEEN)


def neighbour_scores(
    embeddings_qd: Tensor, labelled_kd: Tensor, values_k: Tensor, n_values: int, count: int = NEIGHBOURS
) -> Tensor:
    """Return the logarithm of the votes of the nearest labelled pictures, Q×V float64; UNSEEN without a vote.

    Raises ValueError if shapes or values do not fit.
    """
    _check_labels(labelled_kd, values_k, n_values)
    cosines_qk = embeddings_qd.double().cpu() @ labelled_kd.double().cpu().T
    nearest_qn, rows_qn = cosines_qk.topk(min(count, len(values_k)), dim=1)
    votes_qv = torch.zeros(len(embeddings_qd), n_values, dtype=torch.float64)
    # Relative to the nearest, so that no vote underflows.
    votes_qv.scatter_add_(1, values_k.cpu()[rows_qn], ((nearest_qn - nearest_qn[:, :1]) / NEIGHBOUR_TEMPERATURE).exp())
    scores_qv = votes_qv.log() + nearest_qn[:, :1] / NEIGHBOUR_TEMPERATURE
    return scores_qv.masked_fill(votes_qv == 0, UNSEEN)


def fit_temperature(scores_qv: Tensor, truth_qv: Tensor) -> float:
    """Return the temperature with the largest likelihood of the true values (bool Q×V, one or more a picture).

    A picture with several values counts the probability of them all. Pictures all of whose values are UNSEEN say
    nothing about the temperature. Returns 1 if no picture says anything.
    """
    told = (truth_qv & (scores_qv > UNSEEN)).any(1)
    if not told.any():
        return 1.0
    scores_qv, truth_qv = scores_qv[told], truth_qv[told]
    # The likelihood of single labels has one maximum over T, so the best of a range lies beside the best tried in it.
    low, high = math.log10(COLDEST), math.log10(HOTTEST)
    for _ in range(3):
        tried = torch.logspace(low, high, TRIED, dtype=torch.float64)
        best = int(torch.stack([_surprise(scores_qv.double() / t, truth_qv) for t in tried]).argmin())
        step = (high - low) / (TRIED - 1)
        low, high = low + step * (best - 1), low + step * (best + 1)
    return float(tried[best])


def _surprise(logits_qv: Tensor, truth_qv: Tensor) -> Tensor:
    """Return the mean of -log of the probability of the true values."""
    return -logits_qv.log_softmax(1).masked_fill(~truth_qv, -math.inf).logsumexp(1).mean()


def probabilities(scores_qv: Tensor, temperature: float) -> Tensor:
    """Return the probabilities of the values, Q×V float64."""
    return (scores_qv.double() / temperature).softmax(1).masked_fill(scores_qv <= UNSEEN, 0)


def calibration_error(confidence_q: Tensor, correct_q: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean over pictures of |accuracy - mean confidence| of their bin.

    Bins divide [0, 1] evenly. Raises ValueError if there is no picture.
    """
    if not len(confidence_q):
        raise ValueError("no pictures: nothing to calibrate")
    bin_q = (confidence_q.double() * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_q, correct_q.double() - confidence_q.double())
    return float(gap.abs().sum() / len(confidence_q))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Confidence from which an answer is given, and what that gave on the pictures on which it was chosen."""

    confidence: float
    precision: float
    """Share of the answers that are right; NaN without an answer."""
    coverage: float
    """Share of the pictures that get an answer."""


def thresholds(confidence_q: Tensor, correct_q: Tensor) -> tuple[Threshold, ...]:
    """Return the least threshold for every precision that can be reached: precision rises, coverage falls."""
    order = confidence_q.double().argsort(descending=True, stable=True)
    sorted_q, right_q = confidence_q.double()[order], correct_q.double()[order].cumsum(0)
    precision_q = right_q / torch.arange(1, len(order) + 1, dtype=torch.float64)
    # Pictures of equal confidence are answered together: a threshold can only lie behind the last of them.
    last_q = torch.ones(len(order), dtype=torch.bool)
    last_q[:-1] = sorted_q[1:] < sorted_q[:-1]
    found: list[Threshold] = []
    for end in torch.nonzero(last_q).flatten().flip(0).tolist():
        if precision_q[end] > (found[-1].precision if found else 0):
            found.append(Threshold(float(sorted_q[end]), float(precision_q[end]), (end + 1) / len(order)))
    return tuple(found)


def threshold_for(precision: float, confidence_q: Tensor, correct_q: Tensor) -> Threshold:
    """Return the smallest confidence from which at least `precision` of the answers are right.

    If none reaches that, the threshold is infinite and no picture gets an answer.
    """
    reached = (one for one in thresholds(confidence_q, correct_q) if one.precision >= precision)
    return next(reached, Threshold(math.inf, math.nan, 0.0))


def macro_f1(guessed_q: Tensor, truth_qv: Tensor) -> float:
    """Return the mean over the values that occur of F1 = 2·TP / (2·TP + FP + FN); a guess of -1 is no answer."""
    guess_qv = torch.nn.functional.one_hot(guessed_q + 1, truth_qv.shape[1] + 1)[:, 1:].bool()
    hits, guesses, true = ((one.sum(0).double()) for one in (guess_qv & truth_qv, guess_qv, truth_qv))
    occurring = true > 0
    return float((2 * hits / (guesses + true))[occurring].mean()) if occurring.any() else math.nan


def _check_labels(embeddings_kd: Tensor, values_k: Tensor, n_values: int) -> None:
    if embeddings_kd.ndim != 2 or values_k.shape != embeddings_kd.shape[:1] or not len(values_k):
        raise ValueError(f"embeddings K×D and values K are needed, not {embeddings_kd.shape} and {values_k.shape}")
    if values_k.dtype != torch.int64 or values_k.min() < 0 or values_k.max() >= n_values:
        raise ValueError(f"values must be int64 in 0 to {n_values - 1}")
