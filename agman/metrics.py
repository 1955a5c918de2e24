"""Retrieval metrics as pure functions of embeddings and values: fractions in [0, 1], which tables show times 100.

Shape suffixes: Q queries, C candidates (of one attribute), D embedding width, q a chunk of the queries, H hits.
`hits_qc` marks the ranks that hold a relevant candidate of each query; column 0 is rank 1.

    AP    = (1/R) Σ over the ranks r of relevant candidates of (relevant ones up to r) / r
            with R = all relevant candidates; 0 for a query that has none
    AP@R  = (1/R) Σ over the ranks r <= R of relevant candidates of (relevant ones up to r) / r
    P@k   = relevant among the first k, over k
    R@k   = relevant among the first k, over R; 0 for a query that has none
    MAP   = mean AP over all queries of all attributes ("query-weighted", what the papers report)
    MAP@R = the same mean of AP@R

A k beyond the last candidate is not cut down: P@k counts the missing ranks as misses, R@k is then 1 (or 0).
Without any candidate everything is 0.

Candidates are ranked by falling similarity, equal similarities by their order. Similarities are summed without
rounding (see `numerics.on_grid`) and compared as float32: neither the cutting into chunks nor the device reaches the
ranking, and equal embeddings do tie.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from agman.numerics import on_grid

DEFAULT_KS = (1, 5, 10)
WORKING_BYTES = 64 * 2**20
"""Memory of `retrieval` beside the embeddings in float64. More is slower, as fresh pages cost time."""
BYTES_OF_A_PAIR = 48
"""Peak of one pair of query and candidate, sorting on a device: similarity, key, and the sort's own copies."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Scores of the Q queries of one attribute; float64 on the CPU."""

    average_precision: Tensor
    """AP, Q."""
    average_precision_at_r: Tensor
    """AP@R, Q."""
    precision: dict[int, Tensor]
    """k to P@k, Q."""
    recall: dict[int, Tensor]
    """k to R@k, Q."""
    relevant: Tensor
    """R, Q, int64."""
    candidates: int

    @property
    def answerable(self) -> Tensor:
        """Whether each query has a relevant candidate, Q bool. The others score 0 whatever the ranking."""
        return self.relevant > 0

    @property
    def chance(self) -> Tensor:
        """Expected AP of each query for a random ranking, Q float64."""
        return chance_average_precision(self.relevant, self.candidates)


def retrieval(
    query_embeddings: Tensor,
    candidate_embeddings: Tensor,
    query_values: Tensor,
    candidate_values: Tensor,
    ks: Sequence[int] = DEFAULT_KS,
    chunk: int | None = None,
) -> Retrieval:
    """Rank C candidates (C×D, values C) for each of Q queries (Q×D, values Q) by dot product, and score that.

    Runs where the embeddings are. A candidate is relevant if it has the query's value. `chunk` queries are ranked
    at a time; by default, as many as WORKING_BYTES hold. Raises ValueError if shapes are wrong, values are not
    integers, a k is below 1, or embeddings are not finite: NaN has no rank.
    """
    _check(query_embeddings, candidate_embeddings, query_values, candidate_values, ks)
    queries_qd = on_grid("query embeddings", query_embeddings)
    candidates_dc = on_grid("candidate embeddings", candidate_embeddings).T
    chunk = chunk if chunk is not None else max(1, WORKING_BYTES // (BYTES_OF_A_PAIR * max(len(candidate_values), 1)))
    scores = _scores(ks)
    # Filled in place: small results kept between the chunks would split the large blocks of the allocator one by one.
    table = torch.empty(len(scores), len(query_values), dtype=torch.float64)
    for start in range(0, len(query_values), chunk):
        few = slice(start, start + chunk)
        similarity_qc = (queries_qd[few] @ candidates_dc).float()
        hits_qc = _ranked(similarity_qc, candidate_values == query_values[few, None])
        for row, score in zip(table, scores, strict=True):
            row[few] = score(hits_qc)
    average_precision, at_r, relevant, *at_k = table
    return Retrieval(
        average_precision,
        at_r,
        precision=dict(zip(ks, at_k[: len(ks)], strict=True)),
        recall=dict(zip(ks, at_k[len(ks) :], strict=True)),
        relevant=relevant.long(),
        candidates=len(candidate_values),
    )


def _scores(ks: Sequence[int]) -> list[Callable[[Tensor], Tensor]]:
    """Return the functions of hits that `retrieval` tabulates, in its order."""
    at_k = [partial(score, k=k) for score in (precision_at, recall_at) for k in ks]
    return [average_precision, average_precision_at_r, _relevant, *at_k]


def similarities(query_embeddings: Tensor, candidate_embeddings: Tensor) -> Tensor:
    """Return the dot products that `retrieval` ranks by, Q×C float32. Raises ValueError if one is not finite."""
    queries_qd = on_grid("query embeddings", query_embeddings)
    return (queries_qd @ on_grid("candidate embeddings", candidate_embeddings).T).float()


def average_precision(hits_qc: Tensor) -> Tensor:
    """Return AP of every query, Q float64, from its hits Q×C (bool, in rank order); 0 for a query without any.

    AP = (1/R) Σ over the ranks r of hits of (hits up to r)/r. Summed rank after rank.
    """
    query_h, _, precision_h = _precision_at_hits(hits_qc)
    return _sum_by_query(query_h, precision_h, hits_qc) / _divisor(hits_qc)


def average_precision_at_r(hits_qc: Tensor) -> Tensor:
    """Return AP@R of every query, Q float64, from its hits Q×C (bool, in rank order); its mean is MAP@R.

    AP@R = (1/R) Σ over the ranks r <= R of hits of (hits up to r)/r. 1 only if the R relevant ones come first. As
    published, a query with R = 0 scores 0: see `answerable` before comparing datasets. (Musgrave, Belongie &
    Lim, "A Metric Learning Reality Check", ECCV 2020.)
    """
    query_h, rank_h, precision_h = _precision_at_hits(hits_qc)
    among_first = rank_h <= _relevant(hits_qc)[query_h]
    return _sum_by_query(query_h, precision_h * among_first, hits_qc) / _divisor(hits_qc)


def precision_at(hits_qc: Tensor, k: int) -> Tensor:
    """Return P@k of every query, Q float64: hits among the first k ranks, over k. Ranks beyond C are misses."""
    return _found(hits_qc, k) / k


def recall_at(hits_qc: Tensor, k: int) -> Tensor:
    """Return R@k of every query, Q float64: hits among the first k ranks, over all its hits; 0 without any hit.

    This is the fraction of relevant candidates found. Metric learning papers call "Recall@k" whether there is any hit.
    """
    return _found(hits_qc, k) / _divisor(hits_qc)


def _precision_at_hits(hits_qc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of H hits, by query and rank: its query, its rank, and the precision up to it."""
    _check_hits(hits_qc)
    query_h, column_h = hits_qc.nonzero(as_tuple=True)
    relevant_q = _relevant(hits_qc)
    before_q = relevant_q.cumsum(0) - relevant_q  # hits of the queries before
    found_h = torch.arange(1, len(query_h) + 1, device=hits_qc.device) - before_q[query_h]
    rank_h = column_h + 1
    return query_h, rank_h, found_h / rank_h.double()


def _sum_by_query(query_h: Tensor, terms_h: Tensor, hits_qc: Tensor) -> Tensor:
    return torch.bincount(query_h, terms_h, minlength=len(hits_qc))


def _relevant(hits_qc: Tensor) -> Tensor:
    return hits_qc.sum(1)


def _divisor(hits_qc: Tensor) -> Tensor:
    """Return R, and 1 where that is 0: there the sum is 0 as well."""
    return _relevant(hits_qc).clamp(min=1).double()


def _found(hits_qc: Tensor, k: int) -> Tensor:
    _check_hits(hits_qc)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return hits_qc[:, :k].sum(1).double()


def _ranked(similarity_qc: Tensor, relevant_qc: Tensor) -> Tensor:
    """Return hits_qc on the CPU: `relevant_qc` in the order of falling similarity, then of columns.

    One sort of 64-bit keys is enough: the upper half rises as the similarity falls, the next bits are the column, which
    makes keys distinct, and the lowest is the relevance. NumPy sorts integers several times as fast as either library
    sorts floats with their indices.
    """
    bits_qc = (0.0 - similarity_qc).view(torch.int32)  # 0 − x rather than −x: −0 and 0 are equal
    rising_qc = bits_qc ^ ((bits_qc >> 31) & 0x7FFFFFFF)  # negative floats' bits count the wrong way
    key_qc = rising_qc.long() << 32
    key_qc |= 2 * torch.arange(similarity_qc.shape[1], device=key_qc.device)
    key_qc |= relevant_qc
    if key_qc.device.type == "cpu":
        key_qc.numpy().sort(axis=1)  # in place
    else:
        key_qc = key_qc.sort(dim=1).values
    return (key_qc & 1).bool().cpu()


def summarise(results: Mapping[str, Retrieval]) -> dict[str, float]:
    """Return one number per metric, from every attribute's queries.

    map               mean AP over all queries
    map_macro         mean of the attributes' MAPs
    map_answerable    mean AP over the queries that have a relevant candidate
    map_macro_answerable    mean of the attributes' MAPs over such queries, of the attributes that have any
    map_at_r          mean AP@R over all queries
    map/<attribute>   mean AP over one attribute's queries
    p_at_<k>, r_at_<k>    mean P@k and R@k over all queries (MLflow allows no @ in a name)
    chance            expected MAP of a random ranking
    chance/<attribute>    the same over one attribute's queries
    ceiling           highest possible MAP: the fraction of the queries that have a relevant candidate
    queries, unanswerable    number of queries, and of those without a relevant candidate

    An attribute without queries is left out. Raises ValueError if none has queries.
    """
    results = {attribute: result for attribute, result in results.items() if len(result.relevant)}
    if not results:
        raise ValueError("no queries: nothing to summarise")
    every = list(results.values())
    answerable = torch.cat([result.answerable for result in every])
    average_precision = torch.cat([result.average_precision for result in every])
    of_attribute = {name: float(result.average_precision.mean()) for name, result in results.items()}
    without_hopeless = [
        _mean(result.average_precision[result.answerable]) for result in every if result.answerable.any()
    ]
    chances = {name: result.chance for name, result in results.items()}

    summary = {
        "map": _mean(average_precision),
        "map_macro": sum(of_attribute.values()) / len(of_attribute),
        "map_answerable": _mean(average_precision[answerable]),
        "map_macro_answerable": sum(without_hopeless) / max(len(without_hopeless), 1),
        "map_at_r": _mean(torch.cat([result.average_precision_at_r for result in every])),
        "chance": _mean(torch.cat(list(chances.values()))),
        "ceiling": _mean(answerable.double()),
        "queries": float(len(answerable)),
        "unanswerable": float((~answerable).sum()),
    }
    for k in every[0].precision:
        summary[f"p_at_{k}"] = _mean(torch.cat([result.precision[k] for result in every]))
        summary[f"r_at_{k}"] = _mean(torch.cat([result.recall[k] for result in every]))
    summary |= {f"map/{name}": value for name, value in of_attribute.items()}
    return summary | {f"chance/{name}": _mean(chance) for name, chance in chances.items()}


def _mean(values: Tensor) -> float:
    """Return the mean, or 0 if there are no values."""
    return float(values.mean()) if len(values) else 0.0


def mean_cosine(embeddings: Tensor, attributes: Tensor) -> float:
    """Return the mean cosine of two different rows under one attribute: near 1 if the embeddings have collapsed.

    embeddings K×D of unit length, attributes K. An attribute counts by its rows; one with a single row does not.
    """
    sums, weights = 0.0, 0
    for attribute in attributes.unique():
        rows_kd = embeddings[attributes == attribute].double()
        k = len(rows_kd)
        if k > 1:  # Σ over pairs of e·e' = |Σ e|² − Σ |e|²
            sums += k * float(rows_kd.sum(0).square().sum() - rows_kd.square().sum()) / (k * (k - 1))
            weights += k
    return sums / max(weights, 1)


def chance_average_precision(relevant: Tensor | int, candidates: int) -> Tensor:
    """Return the exact expectation of AP when N candidates with R relevant ones are ranked at random; 0 for R = 0.

    A relevant one sits at rank r with probability R/N, and then (R-1)/(N-1) of the r-1 before it are
    relevant:

        E[AP] = (1/R) Σ_r (R/N)·(1 + (r-1)(R-1)/(N-1))/r = (1/N)·(H_N + (R-1)/(N-1)·(N - H_N)),   H_N = Σ 1/r
    """
    relevant = torch.as_tensor(relevant).double()
    harmonic = (1.0 / torch.arange(1, candidates + 1, dtype=torch.float64)).sum()
    companion = (relevant - 1) / max(candidates - 1, 1)
    expected = (harmonic + companion * (candidates - harmonic)) / max(candidates, 1)
    return torch.where(relevant > 0, expected, torch.zeros_like(expected))


def _check(
    queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor, ks: Sequence[int]
) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        raise ValueError(f"embeddings must be Q×D and C×D, not {shapes}")
    if query_values.shape != queries.shape[:1] or candidate_values.shape != candidates.shape[:1]:
        shapes = f"{tuple(query_values.shape)} and {tuple(candidate_values.shape)}"
        raise ValueError(f"{len(queries)} queries and {len(candidates)} candidates, but values {shapes}")
    for values in (query_values, candidate_values):
        if values.is_floating_point() or values.is_complex():
            raise ValueError(f"values must be integers, not {values.dtype}")
    if any(k < 1 for k in ks):
        raise ValueError(f"every k must be at least 1, not {list(ks)}")


def _check_hits(hits_qc: Tensor) -> None:
    if hits_qc.ndim != 2 or hits_qc.dtype != torch.bool:
        raise ValueError(f"hits must be Q×C bool, not {tuple(hits_qc.shape)} {hits_qc.dtype}")
