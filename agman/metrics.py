"""Retrieval metrics as pure functions of embeddings and values. Shares in [0, 1]; tables show them times 100.

Shape suffixes: Q queries, C candidates (of one attribute), D embedding width, q a chunk of the queries.

    AP   = (1/R) Σ over the ranks r of relevant candidates of (relevant ones up to r) / r
           with R = all relevant candidates; 0 for a query that has none
    P@k  = relevant among the first k, over k
    R@k  = relevant among the first k, over R; 0 for a query that has none
    MAP  = mean AP over all queries of all attributes ("query-weighted", what the papers report)

Candidates are ranked by falling similarity, equal similarities by their order. Similarities are summed in
float64 and compared as float32: how a matrix product is cut up does not reach the ranking, and equal
embeddings do tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What every query of one attribute found; float64 on the CPU."""

    average_precision: Tensor
    """Q."""
    precision: dict[int, Tensor]
    """k to P@k, Q."""
    recall: dict[int, Tensor]
    """k to R@k, Q."""
    relevant: Tensor
    """R, Q, int64."""
    candidates: int


def retrieval(
    query_embeddings: Tensor,
    candidate_embeddings: Tensor,
    query_values: Tensor,
    candidate_values: Tensor,
    ks: Sequence[int] = DEFAULT_KS,
    chunk: int = 256,
) -> Retrieval:
    """Rank C candidates (C×D, values C) for each of Q queries (Q×D, values Q) by dot product, and score that.

    Runs where the embeddings are, and holds `chunk`×C numbers at a time. A candidate is relevant if it has
    the query's value.
    """
    _check(query_embeddings, candidate_embeddings, query_values, candidate_values)
    candidates_dc = candidate_embeddings.double().T
    scored = []
    for embedding_qd, value_q in zip(query_embeddings.split(chunk), query_values.split(chunk), strict=True):
        similarity_qc = (embedding_qd.double() @ candidates_dc).float()
        order_qc = similarity_qc.sort(dim=1, descending=True, stable=True).indices
        scored.append(_score((candidate_values == value_q[:, None]).gather(1, order_qc), ks))
    average_precision, relevant, precision, recall = (
        torch.cat(parts, dim=-1).cpu() for parts in zip(*scored, strict=True)
    )
    return Retrieval(
        average_precision=average_precision,
        precision=dict(zip(ks, precision, strict=True)),
        recall=dict(zip(ks, recall, strict=True)),
        relevant=relevant,
        candidates=len(candidate_values),
    )


def _score(hits_qc: Tensor, ks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AP q, R q, P@k len(ks)×q and R@k len(ks)×q, from which ranks are relevant."""
    found_qc = hits_qc.cumsum(1)  # relevant ones up to each rank
    relevant_q = hits_qc.sum(1)
    divisor_q = relevant_q.clamp(min=1).double()
    rank_c = torch.arange(1, hits_qc.shape[1] + 1, device=hits_qc.device)
    average_precision_q = (hits_qc * found_qc / rank_c.double()).sum(1) / divisor_q
    found_kq = torch.stack([hits_qc[:, :k].sum(1) for k in ks]).double()
    precision_kq = found_kq / torch.tensor(ks, device=hits_qc.device)[:, None]
    return average_precision_q, relevant_q, precision_kq, found_kq / divisor_q


def summarise(results: Mapping[str, Retrieval]) -> dict[str, float]:
    """One number per metric, from every attribute's queries.

    map               mean AP over all queries
    map_macro         mean of the attributes' MAPs
    map_answerable    mean AP over the queries that have a relevant candidate
    map/<attribute>   mean AP over one attribute's queries
    p_at_<k>, r_at_<k>    mean P@k and R@k over all queries (MLflow allows no @ in a name)
    chance            the MAP to expect of a random ranking
    queries, unanswerable    how many queries there are, and how many of them have no relevant candidate

    An attribute without queries is left out. ValueError if that leaves nothing.
    """
    results = {attribute: result for attribute, result in results.items() if len(result.relevant)}
    if not results:
        raise ValueError("no queries: nothing to summarise")
    average_precision = torch.cat([result.average_precision for result in results.values()])
    answerable = torch.cat([result.relevant for result in results.values()]) > 0
    of_attribute = {name: float(result.average_precision.mean()) for name, result in results.items()}
    chances = [chance_average_precision(result.relevant, result.candidates) for result in results.values()]

    summary = {
        "map": float(average_precision.mean()),
        "map_macro": sum(of_attribute.values()) / len(of_attribute),
        "map_answerable": float(average_precision[answerable].mean()) if answerable.any() else 0.0,
        "chance": float(torch.cat(chances).mean()),
        "queries": float(len(answerable)),
        "unanswerable": float((~answerable).sum()),
    }
    for k in next(iter(results.values())).precision:
        summary[f"p_at_{k}"] = float(torch.cat([result.precision[k] for result in results.values()]).mean())
        summary[f"r_at_{k}"] = float(torch.cat([result.recall[k] for result in results.values()]).mean())
    return summary | {f"map/{name}": value for name, value in of_attribute.items()}


def chance_average_precision(relevant: Tensor | int, candidates: int) -> Tensor:
    """The exact expectation of AP when N candidates with R relevant ones are ranked at random; 0 for R = 0.

    A relevant one sits at rank r with probability R/N, and then (R-1)/(N-1) of the r-1 before it are
    relevant:

        E[AP] = (1/R) Σ_r (R/N)·(1 + (r-1)(R-1)/(N-1))/r = (1/N)·(H_N + (R-1)/(N-1)·(N - H_N)),   H_N = Σ 1/r
    """
    relevant = torch.as_tensor(relevant).double()
    harmonic = (1.0 / torch.arange(1, candidates + 1, dtype=torch.float64)).sum()
    companion = (relevant - 1) / max(candidates - 1, 1)
    expected = (harmonic + companion * (candidates - harmonic)) / max(candidates, 1)
    return torch.where(relevant > 0, expected, torch.zeros_like(expected))


def triplet_accuracy(anchor: Tensor, positive: Tensor, negative: Tensor) -> float:
    """Share of triplets (each B×D, unit length) with cos(I, I⁺) > cos(I, I⁻); ties are wrong."""
    similar, different = ((anchor.double() * other.double()).sum(-1).float() for other in (positive, negative))
    return float((similar > different).double().mean())


def _check(queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        raise ValueError(f"embeddings must be Q×D and C×D, not {shapes}")
    if query_values.shape != queries.shape[:1] or candidate_values.shape != candidates.shape[:1]:
        shapes = f"{tuple(query_values.shape)} and {tuple(candidate_values.shape)}"
        raise ValueError(f"{len(queries)} queries and {len(candidates)} candidates, but values {shapes}")
